"""The numbers of a coded image, and their means over images. Imports no torch: `relic.codec.metrics` measures them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Score(NamedTuple):
    """One coded image. Its pixels are rounded to 8 bits."""

    psnr_db: float
    """Infinite for an exact reconstruction."""
    ms_ssim: float | None
    """None where a side is 160 pixels or less: MS-SSIM is not defined there."""
    bpp_real: float
    """Bits of real bytes per pixel."""


class MeanScore(NamedTuple):
    """Means over images."""

    psnr_db: float | None
    """Without exact reconstructions; None where all are exact."""
    ms_ssim: float | None
    """Of the images that have one; None where none has."""
    bpp_real: float


def mean_score(scores: Sequence[Score]) -> MeanScore:
    """Means over one or more images."""
    return MeanScore(
        psnr_db=mean_of(score.psnr_db for score in scores if math.isfinite(score.psnr_db)),
        ms_ssim=mean_of(score.ms_ssim for score in scores),
        bpp_real=math.fsum(score.bpp_real for score in scores) / len(scores),
    )


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where all are."""
    present = [value for value in values if value is not None]
    # fsum rounds once: the mean does not depend on the order, and so not on the number of ranks.
    return math.fsum(present) / len(present) if present else None
