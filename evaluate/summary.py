"""Means over the images, and whether real and estimated rate agree. Imports no torch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluate.results import ImageResult
from relic.codec.scores import mean_of

_GAP_TOLERANCE = 0.01
_GAP_TOLERANCE_BYTES = 8


class Summary(NamedTuple):
    """Means of per-image values; None where no image has one.

    The means in decibels leave out exact reconstructions, whose decibels are infinite.
    """

    psnr_db: float | None
    ms_ssim: float | None
    ms_ssim_db: float | None
    bpp_estimated: float
    bpp_real: float | None
    file_bytes: float | None
    encode_ms: float | None
    decode_ms: float | None
    num_images: int
    num_without_ms_ssim: int
    """Images with a side of 160 pixels or less."""
    num_exact: int
    """Images whose reconstruction is exact."""
    bpp_tables: float | None = None
    bpp_without_contexts: float | None = None


class RateGap(NamedTuple):
    """Mean bytes per image."""

    real: float
    """Without what contexts save: the estimate knows one distribution per channel."""
    estimated: float

    @property
    def is_wide(self) -> bool:
        """Whether they differ by more than 1 % + 8 bytes, or the estimate is not finite."""
        if not math.isfinite(self.estimated):
            return True
        return abs(self.real - self.estimated) > _GAP_TOLERANCE * self.estimated + _GAP_TOLERANCE_BYTES


def summarise(results: Sequence[ImageResult]) -> Summary:
    """Means over one or more images."""
    return Summary(
        psnr_db=mean_of(r.psnr_db for r in results if math.isfinite(r.psnr_db)),
        ms_ssim=mean_of(r.ms_ssim for r in results),
        ms_ssim_db=mean_of(r.ms_ssim_db for r in results if r.ms_ssim_db != math.inf),
        bpp_estimated=math.fsum(r.bpp_estimated for r in results) / len(results),
        bpp_real=mean_of(r.bpp_real for r in results),
        file_bytes=mean_of(r.file_bytes for r in results),
        encode_ms=mean_of(r.encode_ms for r in results),
        decode_ms=mean_of(r.decode_ms for r in results),
        num_images=len(results),
        num_without_ms_ssim=sum(r.ms_ssim is None for r in results),
        num_exact=sum(r.psnr_db == math.inf for r in results),
        bpp_tables=mean_of(r.bpp_tables for r in results),
        bpp_without_contexts=mean_of(r.bpp_without_contexts for r in results),
    )


def rate_gap(results: Sequence[ImageResult]) -> RateGap | None:
    """Real against estimated bytes, or None where nothing was coded."""
    real = mean_of(None if r.bpp_real is None else _plain_bpp(r) * r.width * r.height / 8 for r in results)
    estimated = mean_of(r.bpp_estimated * r.width * r.height / 8 for r in results)
    return None if real is None or estimated is None else RateGap(real, estimated)


def _plain_bpp(result: ImageResult) -> float:
    """The real rate, and what contexts have saved of it."""
    assert result.bpp_real is not None
    return result.bpp_real + (result.bpp_without_contexts or 0.0) - (result.bpp_tables or 0.0)
