"""In exact arithmetic: how far sums of integers are from the borders between two levels of the output."""

from fractions import Fraction

import pytest
import torch

from relic.quantization.weight_steps import off_borders


def levels_per_unit(step: float, step_in: float, step_out: float) -> Fraction:
    """The simplest fraction close to step_out / (step_in * step)."""
    return (Fraction(step_out) / (Fraction(step_in) * Fraction(step))).limit_denominator(32)


@pytest.mark.parametrize(
    ("step_in", "step_out"), [(0.0173, 0.0412), (1 / 255, 0.0051), (1 / 3, 0.047), (0.0072, 1 / 255)]
)
def test_no_sum_of_integers_is_near_a_border(step_in: float, step_out: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.exp(torch.empty(40).uniform_(2, 9, generator=generator))  # r from 7 to 8,000
    steps = step_out / (step_in * rates)
    changed = off_borders(steps, step_in, step_out)
    assert torch.equal(off_borders(changed, step_in, step_out), changed)
    assert (changed / steps - 1).abs().max() < 1 / 254
    for step in changed.tolist():
        r = levels_per_unit(step, step_in, step_out)
        exact = Fraction(step_out) / (Fraction(step_in) * Fraction(step))
        assert abs(exact / r - 1) < Fraction(1, 10_000_000), "but for float32, a simple fraction"
        for level in range(255):
            border = r * (2 * level + 1) / 2
            distance = abs(border - round(border))
            assert distance >= min(Fraction(1, 2), r / 4000)


def test_the_change_is_small_where_sums_are_many_and_bounded_where_they_are_few() -> None:
    step_in, step_out = 0.02, 0.04
    rates = torch.linspace(60, 3000, 500)
    steps = step_out / (step_in * rates)
    changes = (off_borders(steps, step_in, step_out) / steps - 1).abs()
    assert changes.mean() < 3e-4
    few = torch.tensor([200.0, 5000.0])
    assert torch.equal(off_borders(few, step_in, step_out), few), "r of 1 / 100 or less"


def test_steps_have_any_shape() -> None:
    steps = torch.rand(5, 2, 2, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.001
    changed = off_borders(steps, torch.tensor([0.02]), torch.tensor([0.04]))
    assert torch.equal(changed.flatten(), off_borders(steps.flatten(), 0.02, 0.04))
