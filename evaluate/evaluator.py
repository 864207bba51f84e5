"""Evaluate one codec: score every image, code it for real, and check that the bitstream gives the same numbers.

Shapes: x_BCHW and x_hat_BCHW float32 with B = 1, x in [0, 1]; symbols int32 (M, h, w).
"""

import contextlib
import io
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evaluate.codecs import Codec
from evaluate.parallel import map_pictures
from evaluate.round_trip import CodeSymbols, InexactError, RoundTrip, Symbols, coders
from evaluate.sources import ImageSource, Picture, numbers_of_rank
from relic.bitstream.tables import dequantize, quantize
from relic.codec.constants import STRIDE
from relic.codec.metrics import ms_ssim_8bit, psnr_db
from relic.codec.pixels import to_float, to_uint8
from relic.codec.precision import without_tf32
from relic.distributed import World, gather_to_all
from relic.errors import InputError

_LENGTH_TOLERANCE = 0.001
_LENGTH_TOLERANCE_BITS = 64
_REPEATED_FIRST, _REPEATED_EVERY = 8, 32
"""The codec's own reconstruction is computed once more, in one piece, for so many first images and every so many'th."""


class ImageResult(NamedTuple):
    """One row of per_image.csv. Pixels are rounded to 8 bits; None: not measured, or not defined."""

    name: str
    width: int
    height: int
    psnr_db: float
    """Infinite for an exact reconstruction."""
    ms_ssim: float | None
    """None where a side is 160 pixels or less."""
    ms_ssim_db: float | None
    """-10 log10(1 - MS-SSIM); infinite where MS-SSIM is 1."""
    bpp_estimated: float
    """From the likelihoods (of an export set: from its tables), over the image's own pixels."""
    bpp_real: float | None
    """Of the symbols' bytes alone, over the image's own pixels."""
    file_bytes: int | None
    """The whole .relic file."""
    encode_ms: float | None
    """Pixels on the device to the file's bytes: transform, rounding, entropy coding; on one core beside others."""
    decode_ms: float | None
    """The file's bytes to pixels on the device."""


class Evaluation(NamedTuple):
    """A codec's scores on every image of a source; the same on every rank."""

    codec: Codec
    results: list[ImageResult]
    """In the source's order."""
    originals: dict[int, bytes]
    """PNG files of the first images, by their place in the source."""
    reconstructions: dict[int, bytes]
    relu_clipped: float | None = None
    """Share of the ReLU layers' inputs that are below zero; None without such layers, and for export sets."""


def evaluate(
    codec: Codec, source: ImageSource, world: World, *, bitstream: bool, recon_count: int, workers: int
) -> Evaluation:
    """Score `codec` on all images, shared out over the ranks, in fp32 without autocast.

    `workers` images at a time in each rank, one core per image; their symbols are coded in as many processes. Raises
    InexactError, and InputError for an image that cannot be read or coded.
    """
    results: list[ImageResult] = []
    originals: dict[int, bytes] = {}
    reconstructions: dict[int, bytes] = {}
    with exact_arithmetic(), coders(codec.tables, workers) as code:
        score = Scorer(codec, code if bitstream else None)
        pictures = source.pictures(numbers_of_rank(source, world))
        total = math.ceil(source.num_images / world.size)
        off = None if world.is_main else True
        scored = map_pictures(score, pictures, workers)
        for picture, result, x_hat_BCHW in tqdm(
            scored, desc=codec.label, total=total, unit="img", disable=off, leave=False
        ):
            results.append(result)
            if picture.number < recon_count:
                originals[picture.number] = _png(picture.image_BHWC)
                reconstructions[picture.number] = _png(to_uint8(x_hat_BCHW).cpu())
    every = gather_to_all((results, originals, reconstructions, codec.relu_counts()), world)
    below_zero, relu_inputs = (sum(counts) for counts in zip(*(part for *_, part in every), strict=True))
    return Evaluation(
        codec,
        results=[result for part, *_ in every for result in part],
        originals={number: png for _, part, *_ in every for number, png in part.items()},
        reconstructions={number: png for _, _, part, _ in every for number, png in part.items()},
        relu_clipped=below_zero / relu_inputs if relu_inputs else None,
    )


class Scored(NamedTuple):
    """A picture, its numbers, and its reconstruction (1, 3, H, W), not clamped."""

    picture: Picture
    result: ImageResult
    x_hat_BCHW: Tensor


class Scorer:
    """Scores one picture at a time, in any thread. Without `code` rates are estimated alone."""

    def __init__(self, codec: Codec, code: CodeSymbols | None) -> None:
        self._codec = codec
        self._device = codec.device
        self._code = code
        self._warm_up()

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> Scored:
        """Score an image. Raises InexactError and InputError, naming codec and picture."""
        try:
            return self._score(picture)
        except (InputError, InexactError) as error:
            raise type(error)(f"{self._codec.label}, {picture.name}: {error}") from error

    def _score(self, picture: Picture) -> Scored:
        x_BCHW = to_float(picture.image_BHWC.to(self._device))
        height, width = x_BCHW.shape[2:]
        began = time.perf_counter()
        y_BMhw = self._codec.analyse(x_BCHW)
        symbols = quantize(y_BMhw[0].cpu().numpy(), self._codec.tables)
        analyse_ms = 1000 * (time.perf_counter() - began)
        own = self._codec.quantise(y_BMhw)
        trip = self._code(symbols, width, height) if self._code else None
        if trip:
            self._check(symbols, trip, own.y_hat_BMhw)
        began = time.perf_counter()
        y_hat_BMhw = torch.from_numpy(dequantize(trip.symbols, self._codec.tables))[None] if trip else own.y_hat_BMhw
        x_hat_BCHW = self._codec.synthesise(y_hat_BMhw, height, width)
        self._wait_for_device()
        synthesise_ms = 1000 * (time.perf_counter() - began)
        if not torch.isfinite(x_hat_BCHW).all():
            raise InputError("the reconstruction is not finite; take another checkpoint")
        is_repeated = picture.number < _REPEATED_FIRST or picture.number % _REPEATED_EVERY == 0
        if trip and is_repeated and not torch.equal(x_hat_BCHW, self._codec.reconstruct(x_BCHW)):
            raise InexactError("the decoded picture is not the model's own reconstruction")
        similarity = ms_ssim_8bit(x_BCHW, x_hat_BCHW).item()
        has_ms_ssim = not math.isnan(similarity)
        result = ImageResult(
            name=picture.name,
            width=width,
            height=height,
            psnr_db=psnr_db(x_BCHW, x_hat_BCHW).item(),
            ms_ssim=similarity if has_ms_ssim else None,
            ms_ssim_db=in_decibels(similarity) if has_ms_ssim else None,
            bpp_estimated=own.estimated_bits / (width * height),
            bpp_real=8 * trip.payload_bytes / (width * height) if trip else None,
            file_bytes=trip.file_bytes if trip else None,
            encode_ms=analyse_ms + trip.pack_ms if trip else None,
            decode_ms=trip.unpack_ms + synthesise_ms if trip else None,
        )
        return Scored(picture, result, x_hat_BCHW)

    def _check(self, symbols: Symbols, trip: RoundTrip, own_y_hat_BMhw: Tensor) -> None:
        if not np.array_equal(symbols, trip.symbols):
            raise InexactError("decoding gave other symbols than were encoded")
        # The decoder's input, bit for bit: its output then differs from the model's own only if it does not repeat.
        if not np.array_equal(dequantize(trip.symbols, self._codec.tables), own_y_hat_BMhw[0].numpy()):
            raise InexactError("the decoded latents are not the model's own")
        difference_bits = abs(8 * trip.payload_bytes - trip.expected_bits)
        if difference_bits > _LENGTH_TOLERANCE * trip.expected_bits + _LENGTH_TOLERANCE_BITS:
            raise InexactError(
                f"the stream has {trip.payload_bytes} bytes, its symbols cost {trip.expected_bits / 8:.0f} under the "
                "stored tables"
            )

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Let libraries start up on a small picture, so that the first image is timed like the others."""
        with contextlib.suppress(InputError):  # parts of a fixed size take no other
            self._codec.reconstruct(torch.zeros(1, 3, 4 * STRIDE, 4 * STRIDE, device=self._device))
        self._wait_for_device()

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full fp32, and the same algorithm each time: a decoder must repeat the encoder's arithmetic bit for bit."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with without_tf32():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def in_decibels(ms_ssim: float) -> float:
    """-10 log10(1 - MS-SSIM); infinite where rounding leaves no difference to 1."""
    return -10 * math.log10(1 - ms_ssim) if ms_ssim < 1 else math.inf


def _png(images_BHWC: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(images_BHWC[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()
