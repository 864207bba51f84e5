"""Evaluate one codec: score every image, code it for real, and check that the bitstream gives the same numbers.

Shapes: x_BCHW and x_hat_BCHW float32 with B = 1, x in [0, 1]; symbols int32 (M, h, w).
"""

import contextlib
import io
import math
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evaluate.codecs import Codec, Quantised
from evaluate.moving import MoveImageSymbols, mover_for
from evaluate.parallel import map_images
from evaluate.results import Evaluation, ImageResult, in_decibels
from evaluate.round_trip import CodeSymbols, InexactError, RoundTrip, coders
from evaluate.sources import ImageSource, SourceImage, numbers_of_rank
from relic.arrays import Symbols
from relic.bitstream.rdoq import RdoqSettings
from relic.bitstream.tables import dequantize, quantize
from relic.codec.constants import STRIDE
from relic.codec.metrics import score_coded
from relic.codec.pixels import to_float, to_uint8
from relic.codec.precision import without_tf32
from relic.distributed import World, gather_to_all
from relic.errors import InputError, naming

_LENGTH_TOLERANCE = 0.001
_LENGTH_TOLERANCE_BITS = 64
_NO_RDOQ = RdoqSettings()
_ON_GPU = 2
"""Images that a GPU computes at a time, while those of the other workers are coded. More would only fill its memory."""
_REPEATED_FIRST, _REPEATED_EVERY = 8, 32
"""The codec's own reconstruction is computed again, by one forward pass, for the first 8 images and for every 32nd."""


def evaluate(
    codec: Codec,
    source: ImageSource,
    world: World,
    *,
    bitstream: bool,
    recon_count: int,
    workers: int,
    rdoq: RdoqSettings = _NO_RDOQ,
) -> Evaluation:
    """Score `codec` on all images in fp32 without autocast. Each rank scores its share.

    In each rank `workers` images are scored at a time, one core per image. Symbols are coded in as many processes.
    Raises InexactError, and InputError for an image that cannot be read or coded.
    """
    results: list[ImageResult] = []
    originals: dict[int, bytes] = {}
    reconstructions: dict[int, bytes] = {}
    with exact_arithmetic(), coders(codec.tables, workers) as code:
        score = Scorer(codec, code if bitstream else None, mover_for(codec, rdoq))
        images = source.read(numbers_of_rank(source, world))
        total = math.ceil(source.num_images / world.size)
        off = None if world.is_main else True
        scored = map_images(score, images, workers)
        for image, result, x_hat_BCHW in tqdm(
            scored, desc=codec.label, total=total, unit="img", disable=off, leave=False
        ):
            results.append(result)
            if image.number < recon_count:
                originals[image.number] = _png(image.pixels_BHWC)
                reconstructions[image.number] = _png(to_uint8(x_hat_BCHW).cpu())
    every = gather_to_all((results, originals, reconstructions, codec.relu_counts()), world)
    below_zero, relu_inputs = (sum(counts) for counts in zip(*(part for *_, part in every), strict=True))
    return Evaluation(
        codec,
        results=[result for part, *_ in every for result in part],
        originals={number: png for _, part, *_ in every for number, png in part.items()},
        reconstructions={number: png for _, _, part, _ in every for number, png in part.items()},
        rdoq=rdoq,
        relu_below_zero=below_zero / relu_inputs if relu_inputs else None,
    )


class Scored(NamedTuple):
    """An image, its numbers, and its reconstruction (1, 3, H, W), not clamped."""

    image: SourceImage
    result: ImageResult
    x_hat_BCHW: Tensor


class Scorer:
    """Scores one image per call, in any thread. Without `code` only the estimated rate is measured.

    `move`: changes the symbols before they are coded. The image is then decoded from these symbols.
    """

    def __init__(self, codec: Codec, code: CodeSymbols | None, move: MoveImageSymbols | None = None) -> None:
        self._codec = codec
        self._move = move
        self._device = codec.device
        self._code = code
        self._turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._warm = threading.local()
        if _is_gpu(self._device):
            self._turn = threading.BoundedSemaphore(_ON_GPU)
        else:
            self._warm_up(4 * STRIDE, 4 * STRIDE)

    @torch.inference_mode()
    def __call__(self, image: SourceImage) -> Scored:
        """Score an image. Raises InexactError and InputError, naming codec and image."""
        source = f"{self._codec.label}, {image.name}"
        try:
            with naming(source):
                return self._score(image)
        except InexactError as error:
            raise InexactError(f"{source}: {error}") from error

    def _score(self, image: SourceImage) -> Scored:
        height, width = image.pixels_BHWC.shape[1:3]
        with self._turn:
            if _is_gpu(self._device):
                self._warm_up_once(height, width)
            x_BCHW = to_float(image.pixels_BHWC.to(self._device))
            began = time.perf_counter()
            y_BMhw = self._codec.analyse(x_BCHW)
            symbols = quantize(y_BMhw[0].cpu().numpy(), self._codec.tables)
            if self._move:
                symbols = self._move(symbols, x_BCHW)
                y_BMhw = torch.from_numpy(dequantize(symbols, self._codec.tables))[None].to(y_BMhw.device)
            analyse_ms = 1000 * (time.perf_counter() - began)
            own = self._codec.quantise(y_BMhw)
        trip = self._code(symbols, width, height) if self._code else None
        if trip:
            self._check(symbols, trip, own.y_hat_BMhw)
        with self._turn:
            return self._score_decoded(image, x_BCHW, own, trip, analyse_ms)

    def _score_decoded(
        self, image: SourceImage, x_BCHW: Tensor, own: Quantised, trip: RoundTrip | None, analyse_ms: float
    ) -> Scored:
        height, width = x_BCHW.shape[2:]
        began = time.perf_counter()
        y_hat_BMhw = torch.from_numpy(dequantize(trip.symbols, self._codec.tables))[None] if trip else own.y_hat_BMhw
        x_hat_BCHW = self._codec.synthesise(y_hat_BMhw, height, width)
        self._wait_for_device()
        synthesise_ms = 1000 * (time.perf_counter() - began)
        if not torch.isfinite(x_hat_BCHW).all():
            raise InputError("the reconstruction is not finite; take another checkpoint")
        is_repeated = image.number < _REPEATED_FIRST or image.number % _REPEATED_EVERY == 0
        if trip and is_repeated and not torch.equal(x_hat_BCHW, self._own_reconstruction(x_BCHW, own)):
            raise InexactError("the decoded image is not the model's own reconstruction")
        score = score_coded(x_BCHW, x_hat_BCHW, trip.payload_bytes if trip else 0)
        result = ImageResult(
            name=image.name,
            width=width,
            height=height,
            psnr_db=score.psnr_db,
            ms_ssim=score.ms_ssim,
            ms_ssim_db=None if score.ms_ssim is None else in_decibels(score.ms_ssim),
            bpp_estimated=own.estimated_bits / (width * height),
            bpp_real=score.bpp_real if trip else None,
            file_bytes=trip.file_bytes if trip else None,
            encode_ms=analyse_ms + trip.pack_ms if trip else None,
            decode_ms=trip.unpack_ms + synthesise_ms if trip else None,
            bpp_tables=trip.expected_bits / (width * height) if trip else None,
            bpp_without_contexts=trip.plain_bits / (width * height) if trip else None,
        )
        return Scored(image, result, x_hat_BCHW)

    def _own_reconstruction(self, x_BCHW: Tensor, own: Quantised) -> Tensor:
        """By one forward pass. Of moved symbols, by the decoder alone."""
        if self._move:
            return self._codec.synthesise(own.y_hat_BMhw, *x_BCHW.shape[2:])
        return self._codec.reconstruct(x_BCHW)

    def _check(self, symbols: Symbols, trip: RoundTrip, own_y_hat_BMhw: Tensor) -> None:
        if not np.array_equal(symbols, trip.symbols):
            raise InexactError("decoding gave other symbols than were encoded")
        # This is the decoder's input. If it is equal bit for bit, only a decoder that is not deterministic can differ.
        if not np.array_equal(dequantize(trip.symbols, self._codec.tables), own_y_hat_BMhw[0].numpy()):
            raise InexactError("the decoded latents are not the model's own")
        difference_bits = abs(8 * trip.payload_bytes - trip.expected_bits)
        if difference_bits > _LENGTH_TOLERANCE * trip.expected_bits + _LENGTH_TOLERANCE_BITS:
            raise InexactError(
                f"the stream has {trip.payload_bytes} bytes, but under the stored tables its symbols take "
                f"{trip.expected_bits / 8:.0f}"
            )

    def _warm_up_once(self, height: int, width: int) -> None:
        """cuDNN starts in each thread, and chooses its algorithms for each size of images there."""
        seen: set[tuple[int, int]] = self._warm.__dict__.setdefault("sizes", set())
        if (height, width) not in seen:
            self._warm_up(height, width)
            seen.add((height, width))

    @torch.inference_mode()
    def _warm_up(self, height: int, width: int) -> None:
        """Let libraries start on an empty image, so that the first image is timed like the others."""
        with contextlib.suppress(InputError):  # parts of a fixed size refuse other sizes
            self._codec.reconstruct(torch.zeros(1, 3, height, width, device=self._device))
        self._wait_for_device()

    def _wait_for_device(self) -> None:
        if _is_gpu(self._device):
            torch.cuda.synchronize(self._device)


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full fp32, and the same algorithm in every call: a decoder must repeat the encoder's arithmetic bit for bit."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with without_tf32():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _png(images_BHWC: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(images_BHWC[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()
