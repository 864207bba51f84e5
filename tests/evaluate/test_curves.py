import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from evaluate.curves import Curve, Point, bd_rate_against
from evaluate.plots import rd_figure
from evaluate.published import PUBLISHED


def curve(rates: Sequence[float], psnr: Callable[[float], float], name: str = "x") -> Curve:
    return Curve(name, "codec", tuple(Point(str(rate), rate, psnr(rate), 1 - 0.1 / (1 + rate)) for rate in rates))


RATES = (0.1, 0.2, 0.4, 0.8, 1.6)


def quality(rate: float) -> float:
    return 30 + 5 * math.log2(rate)


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.3])
def test_bd_rate_of_a_curve_whose_rates_are_scaled_is_the_scale(factor: float) -> None:
    scaled = curve([factor * rate for rate in RATES], lambda rate: quality(rate / factor))
    found = bd_rate_against(curve(RATES, quality), scaled, "psnr_db")
    assert found is not None
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert found.overlap == pytest.approx(1)


def test_overlap_is_the_share_of_qualities_both_reach() -> None:
    shifted = curve([4 * rate for rate in RATES], quality)  # 10 of 20 dB are shared, of 30 in all
    found = bd_rate_against(curve(RATES, quality), shifted, "psnr_db")
    assert found is not None
    assert found.percent == pytest.approx(0, abs=1e-6)
    assert found.overlap == pytest.approx(1 / 3)


def test_a_point_that_is_not_finite_is_left_out_of_the_plot_and_gives_no_bd_rate() -> None:
    whole = curve(RATES, quality)
    broken = whole._replace(points=(*whole.points[:-1], whole.points[-1]._replace(bpp=math.inf)))
    assert bd_rate_against(whole, broken, "psnr_db") is None and bd_rate_against(broken, whole, "psnr_db") is None
    drawn = rd_figure([broken]).axes[0]
    assert np.asarray(drawn.lines[0].get_xdata()).tolist() == list(RATES[:-1])
    assert drawn.get_xlim() == (0, 1.5 * RATES[-2])


@pytest.mark.parametrize(
    "other",
    [
        curve(RATES[:3], quality),
        curve(RATES, lambda rate: 30 - rate),
        curve([1000 * rate for rate in RATES], quality),
        Curve("x", "codec", tuple(Point("", rate, None, None) for rate in RATES)),
        Curve("x", "codec", (*curve(RATES, quality).points, Point("", 9.0, math.inf, 1.0))),
    ],
    ids=["three rates", "falling", "no common quality", "not measured", "one exact"],
)
def test_no_bd_rate_where_it_would_mean_nothing(other: Curve) -> None:
    assert bd_rate_against(curve(RATES, quality), other, "psnr_db") is None


def test_published_points_are_eight_and_rise() -> None:
    points = np.array([(point.bpp, point.psnr_db, point.ms_ssim) for point in PUBLISHED.points], dtype=float)
    assert points.shape == (8, 3) and (np.diff(points, axis=0) > 0).all()
