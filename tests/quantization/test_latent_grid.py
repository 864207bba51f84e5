"""Latents on an odd grid round as float latents do."""

import numpy as np
import pytest

from relic.quantization.latent_grid import LatentGrid, choose_grid


def share_rounded_alike(steps: int) -> float:
    rng = np.random.default_rng(0)
    y, medians = rng.normal(0, 5, (40, 2000)), rng.normal(0, 1, (40, 1)).astype(np.float32)
    moved = y + LatentGrid(steps, 128).offsets(medians)
    given = np.rint(moved * steps) / steps
    return float(np.mean(np.rint(given - medians) == np.rint(y - medians)))


@pytest.mark.parametrize("steps", [1, 3, 5, 15])
def test_an_odd_grid_rounds_as_float_does(steps: int) -> None:
    assert share_rounded_alike(steps) == 1


@pytest.mark.parametrize("steps", [2, 4])
def test_an_even_grid_does_not(steps: int) -> None:
    assert share_rounded_alike(steps) < 0.95


@pytest.mark.parametrize(
    ("low", "high", "steps"), [(-1, 1, 15), (-20, 12, 5), (-30, 30, 3), (-100, 100, 1), (-127, 127, 1)]
)
def test_the_grid_is_the_finest_odd_one_that_covers_the_values(low: float, high: float, steps: int) -> None:
    grid = choose_grid(low, high)
    assert grid is not None and grid.steps == steps
    lowest, highest = ((level - grid.zero_point) / grid.steps for level in (0, 255))
    assert lowest <= low and highest >= high
    assert abs((low - lowest) - (highest - high)) <= 1, "equal headroom"


def test_values_of_one_sign_still_have_0_on_the_grid() -> None:
    grid = choose_grid(40, 200)
    assert grid == LatentGrid(1, 28)


def test_no_grid_covers_more_than_255_values() -> None:
    assert choose_grid(-128, 127) is None
