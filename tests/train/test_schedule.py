"""Every step's rate against the closed forms, worked out here a second time. Nothing here needs torch."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from train.schedule import Schedule

EPOCHS, STEPS, LR = 4, 5, 2e-3


def rates(sched: str, warmup: int = 0, ms_ssim: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)) -> list[float]:
    """The rate of every step of a run of as many epochs as there are values of MS-SSIM."""
    optimizer: Any = SimpleNamespace(param_groups=[{"lr": LR}, {"lr": LR}])
    schedule = Schedule(
        optimizer,
        sched=sched,
        lr=LR,
        epochs=len(ms_ssim),
        steps_per_epoch=STEPS,
        warmup_steps=warmup,
        onecycle_pct_start=0.3,
    )
    seen = []
    for epoch, value in enumerate(ms_ssim):
        for step in range(STEPS):
            seen.append(schedule.set_rate(epoch * STEPS + step))
            assert [group["lr"] for group in optimizer.param_groups] == [seen[-1]] * 2
            schedule.step_done()
        schedule.epoch_done(value)
    return seen


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_falls_by_step_under_a_linear_warm_up(warmup: int) -> None:
    expected = []
    for step in range(EPOCHS * STEPS):
        cosine = 0.01 * LR + 0.99 * LR * 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * STEPS)))
        expected.append(cosine * (min(1.0, (step + 1) / warmup) if warmup else 1))
    assert rates("cosine", warmup) == pytest.approx(expected, rel=1e-12)


def test_none_is_constant_after_the_warm_up() -> None:
    assert rates("none", 3) == pytest.approx([LR / 3, 2 * LR / 3] + [LR] * 18)


def test_plateau_under_a_warm_up() -> None:
    expected = [LR * min(1.0, (step + 1) / 3) for step in range(4 * STEPS)] + [LR / 2] * STEPS
    assert rates("plateau", 3, (0.5, 0.4, 0.4, 0.4, 0.4)) == pytest.approx(expected, rel=1e-12)


def test_plateau_halves_after_three_epochs_without_a_better_ms_ssim() -> None:
    by_epoch = rates("plateau", 0, (0.5, 0.4, 0.5, 0.3, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1))[::STEPS]
    assert by_epoch == pytest.approx([LR] * 4 + [LR / 2] * 5 + [LR / 4])


def test_plateau_goes_on_from_its_state() -> None:
    optimizer: Any = SimpleNamespace(param_groups=[{"lr": LR}])
    flags: dict[str, Any] = {"sched": "plateau", "lr": LR, "epochs": 9, "steps_per_epoch": STEPS, "warmup_steps": 0}
    whole, first = (Schedule(optimizer, **flags, onecycle_pct_start=0.3) for _ in range(2))
    values = (0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3)
    for value in values:
        whole.epoch_done(value)
    for value in values[:3]:
        first.epoch_done(value)
    second = Schedule(optimizer, **flags, onecycle_pct_start=0.3)
    second.load_state_dict(first.state_dict())
    for value in values[3:]:
        second.epoch_done(value)
    assert second.set_rate(0) == whole.set_rate(0) == LR / 4
