"""Judge one codec: score every image, code it for real, and refuse any number that the bitstream does not bear out.

Shapes: x_BCHW and x_hat_BCHW float32 with B = 1, x in [0, 1]; symbols int32 (M, h, w).
"""

import contextlib
import io
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evaluate.clipping import ReluInputs
from evaluate.codecs import Codec
from evaluate.sources import ImageSource, Picture
from relic.bitstream.container import OVERHEAD_BYTES, pack, unpack
from relic.bitstream.tables import code_length_bits
from relic.codec.coding import analyse, pad_to_stride, synthesise, tables_of
from relic.codec.constants import STRIDE
from relic.codec.loss import without_tf32
from relic.codec.metrics import score_images
from relic.codec.pixels import to_float, to_uint8
from relic.distributed import World, gather_to_all
from relic.errors import InputError

_LENGTH_TOLERANCE = 0.001
_LENGTH_TOLERANCE_BITS = 64


class InexactError(RuntimeError):
    """What was decoded is not what was encoded, or the stream has another length than its tables give it.

    No number of such a run can be trusted. The message names checkpoint and image.
    """


class Coded(NamedTuple):
    """What coding one image for real took."""

    bpp: float
    """Of the symbols' bytes alone, over the image's own pixels."""
    file_bytes: int
    """The whole .relic file."""
    encode_ms: float
    """Pixels on the device to the file's bytes: transform, rounding, entropy coding. One image at a time."""
    decode_ms: float
    """The file's bytes to pixels on the device."""


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
    """From the likelihoods, over the image's own pixels."""
    bpp_real: float | None
    file_bytes: int | None
    encode_ms: float | None
    decode_ms: float | None


class Evaluation(NamedTuple):
    """A codec judged on every image of a source; the same on every rank."""

    codec: Codec
    results: list[ImageResult]
    """In the source's order."""
    originals: dict[int, bytes]
    """PNG files of the first images, by their place in the source."""
    reconstructions: dict[int, bytes]
    relu_clipped: float | None = None
    """Share of the ReLU layers' inputs that are below zero; None without such layers."""


def evaluate(codec: Codec, source: ImageSource, world: World, *, bitstream: bool, recon_count: int) -> Evaluation:
    """Judge `codec` on all images, shared out over the ranks, in fp32 without autocast.

    Raises InexactError, and InputError for an image that cannot be read or coded.
    """
    results: list[ImageResult] = []
    originals: dict[int, bytes] = {}
    reconstructions: dict[int, bytes] = {}
    with exact_arithmetic():
        judge = Judge(codec, world.device, bitstream=bitstream)
        pictures = source.pictures(world.rank, world.size)
        total = math.ceil(source.num_images / world.size)
        off = None if world.is_main else True
        for picture in tqdm(pictures, desc=codec.label, total=total, unit="img", disable=off, leave=False):
            result, x_hat_BCHW = judge(picture)
            results.append(result)
            if picture.number < recon_count:
                originals[picture.number] = _png(picture.image_BHWC)
                reconstructions[picture.number] = _png(to_uint8(x_hat_BCHW).cpu())
    every = gather_to_all((results, originals, reconstructions, judge.relu_inputs.counts), world)
    below, inputs = (sum(counts) for counts in zip(*(part for *_, part in every), strict=True))
    return Evaluation(
        codec,
        results=[result for part, *_ in every for result in part],
        originals={number: png for _, part, *_ in every for number, png in part.items()},
        reconstructions={number: png for _, _, part, _ in every for number, png in part.items()},
        relu_clipped=below / inputs if inputs else None,
    )


class Judge:
    """A codec on a device, which scores one picture at a time."""

    def __init__(self, codec: Codec, device: torch.device, *, bitstream: bool) -> None:
        self._label = codec.label
        self._tables = tables_of(codec.model)
        self._model = codec.model.to(device, memory_format=torch.channels_last)
        self._device = device
        self._bitstream = bitstream
        self.relu_inputs = ReluInputs(self._model)
        self._warm_up()

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> tuple[ImageResult, Tensor]:
        """The picture's numbers and the model's reconstruction (1, 3, H, W), not clamped."""
        x_BCHW = to_float(picture.image_BHWC.to(self._device))
        height, width = x_BCHW.shape[2:]
        with self.relu_inputs.counted():
            output = self._model(pad_to_stride(x_BCHW))
        x_hat_BCHW = output["x_hat"][:, :, :height, :width]
        if not torch.isfinite(x_hat_BCHW).all():
            raise InputError(
                f"{self._label}, {picture.name}: the reconstruction is not finite; take another checkpoint"
            )
        psnr_db, ms_ssim, bpp = (score.item() for score in score_images(x_BCHW, x_hat_BCHW, output["likelihoods"]["y"]))
        coded = self._code(picture.name, x_BCHW, x_hat_BCHW) if self._bitstream else None
        has_ms_ssim = not math.isnan(ms_ssim)
        result = ImageResult(
            name=picture.name,
            width=width,
            height=height,
            psnr_db=psnr_db,
            ms_ssim=ms_ssim if has_ms_ssim else None,
            ms_ssim_db=in_decibels(ms_ssim) if has_ms_ssim else None,
            bpp_estimated=bpp,
            bpp_real=coded.bpp if coded else None,
            file_bytes=coded.file_bytes if coded else None,
            encode_ms=coded.encode_ms if coded else None,
            decode_ms=coded.decode_ms if coded else None,
        )
        return result, x_hat_BCHW

    def _code(self, name: str, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Coded:
        """Encode, decode, and compare with the symbols encoded and with the model's own reconstruction.

        In this process: the coder holds the GIL, and takes a few hundredths of what transforms and metrics take.
        """
        height, width = x_BCHW.shape[2:]
        began = time.perf_counter()
        symbols = analyse(self._model, x_BCHW)[0]
        try:
            file = pack(symbols, width, height, self._tables)
        except InputError as error:
            raise InputError(f"{self._label}, {name}: {error}") from None
        encoded = time.perf_counter()
        try:
            decoded = unpack(file, self._tables)
        except InputError as error:
            raise InexactError(f"{self._label}, {name}: the stream just written cannot be read: {error}") from error
        decoded_BCHW = synthesise(self._model, decoded.symbols[None], decoded.height, decoded.width)
        self._wait_for_device()
        finished = time.perf_counter()
        self._check_symbols(name, symbols, decoded.symbols)
        if not torch.equal(decoded_BCHW, x_hat_BCHW):
            raise InexactError(f"{self._label}, {name}: the decoded picture is not the model's own reconstruction")
        payload_bytes = len(file) - OVERHEAD_BYTES
        self._check_length(name, symbols, payload_bytes)
        return Coded(
            bpp=8 * payload_bytes / (width * height),
            file_bytes=len(file),
            encode_ms=1000 * (encoded - began),
            decode_ms=1000 * (finished - encoded),
        )

    def _check_symbols(self, name: str, encoded: npt.NDArray[np.int32], decoded: npt.NDArray[np.int32]) -> None:
        if not np.array_equal(encoded, decoded):
            raise InexactError(f"{self._label}, {name}: decoding gave other symbols than were encoded")

    def _check_length(self, name: str, symbols: npt.NDArray[np.int32], payload_bytes: int) -> None:
        expected_bits = code_length_bits(symbols, self._tables)
        if abs(8 * payload_bytes - expected_bits) > _LENGTH_TOLERANCE * expected_bits + _LENGTH_TOLERANCE_BITS:
            raise InexactError(
                f"{self._label}, {name}: the stream has {payload_bytes} bytes, its symbols cost "
                f"{expected_bits / 8:.0f} under the stored tables"
            )

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Let libraries start up on a small picture, so that the first image is timed like the others."""
        x_BCHW = torch.zeros(1, 3, 4 * STRIDE, 4 * STRIDE, device=self._device)
        synthesise(self._model, analyse(self._model, x_BCHW), *x_BCHW.shape[2:])
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
