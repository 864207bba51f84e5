"""What evaluating a codec gives: a row per image, and what belongs to them. Imports no torch."""

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from evaluate.codecs import Codec
    from relic.bitstream.rdoq import RdoqSettings


class ImageResult(NamedTuple):
    """One row of per_image.csv. Pixels are rounded to 8 bits. None: not measured, or not defined."""

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
    """Bits per pixel of the image, from the likelihoods. For an export set, from its tables."""
    bpp_real: float | None
    """Bits per pixel of the image: the bytes of its symbols alone."""
    file_bytes: int | None
    """The whole .relic file."""
    encode_ms: float | None
    """From pixels on the device to the bytes of the file: transform, rounding, entropy coding. On one core, while other
    cores work on other images."""
    decode_ms: float | None
    """From the bytes of the file to pixels on the device."""
    bpp_tables: float | None = None
    """Bits per pixel of the image: the code length of its symbols under the tables that coded them."""
    bpp_without_contexts: float | None = None
    """The same with one row per channel, as in a stream of version 1. Without contexts they are equal."""


class Evaluation(NamedTuple):
    """A codec's scores on every image of a source; the same on every rank."""

    codec: "Codec"
    results: list[ImageResult]
    """In the source's order."""
    originals: dict[int, bytes]
    """PNG files of the first images, by their number in the source."""
    reconstructions: dict[int, bytes]
    """The same of their reconstructions."""
    rdoq: "RdoqSettings"
    relu_below_zero: float | None = None
    """Share of the ReLU layers' inputs that are below zero; None without such layers, and for export sets."""


def in_decibels(ms_ssim: float) -> float:
    """-10 log10(1 - MS-SSIM); infinite where rounding leaves no difference to 1."""
    return -10 * math.log10(1 - ms_ssim) if ms_ssim < 1 else math.inf
