import math

import pytest

from evaluate.results import ImageResult, in_decibels
from evaluate.summary import rate_gap, summarise


def result(
    psnr_db: float = 30.0, ms_ssim: float | None = 0.99, real: float | None = 1.0, estimated: float = 1.0
) -> ImageResult:
    decibels = None if ms_ssim is None else in_decibels(ms_ssim)
    coded = (None, None, None, None) if real is None else (real, 140, 2.0, 4.0)
    return ImageResult("x", 40, 20, psnr_db, ms_ssim, decibels, estimated, *coded)


def test_decibels_of_ms_ssim() -> None:
    assert in_decibels(0.99) == pytest.approx(20)
    assert in_decibels(1.0) == in_decibels(1.0000001) == math.inf


def test_means_leave_out_what_is_missing_or_infinite_and_count_it() -> None:
    summary = summarise([result(30), result(math.inf, 1.0), result(36, None)])
    assert summary.psnr_db == 33
    assert summary.ms_ssim == pytest.approx(0.995)
    assert summary.ms_ssim_db == pytest.approx(20)
    assert (summary.num_images, summary.num_without_ms_ssim, summary.num_exact) == (3, 1, 1)
    nothing = summarise([result(math.inf, None, real=None)])
    assert (nothing.psnr_db, nothing.ms_ssim, nothing.ms_ssim_db, nothing.bpp_real) == (None, None, None, None)


@pytest.mark.parametrize(("real_bpp", "is_wide"), [(1.0, False), (1.089, False), (1.091, True), (0.90, True)])
def test_a_gap_is_wide_beyond_one_percent_and_eight_bytes(real_bpp: float, is_wide: bool) -> None:
    gap = rate_gap([result(real=real_bpp)] * 3)  # 1 bpp of 800 pixels is 100 bytes, so 9 bytes are allowed
    assert gap is not None and gap.is_wide == is_wide
    assert rate_gap([result(real=None)]) is None


def test_an_estimate_that_is_not_finite_differs_from_every_real_rate() -> None:
    gap = rate_gap([result(estimated=math.inf)])
    assert gap is not None and gap.is_wide
    near = rate_gap([result()])
    assert near is not None and not near.is_wide
