"""Every step's rate against the closed forms, worked out here a second time, and torch's OneCycleLR."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.train.conftest import Run
from train.schedule import Schedule

EPOCHS, STEPS, LR = 4, 5, 2e-3


def rates(sched: str, warmup: int = 0, ms_ssim: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=LR)
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
            returned = schedule.set_rate(epoch * STEPS + step, epoch)
            assert returned == optimizer.param_groups[0]["lr"]
            seen.append(returned)
            parameter.grad = torch.ones(1)
            optimizer.step()
            schedule.step_done()
        schedule.epoch_done(value)
    return seen


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_falls_by_epoch_under_a_linear_warm_up(warmup: int) -> None:
    expected = []
    for step in range(EPOCHS * STEPS):
        done = step // STEPS
        cosine = 0.01 * LR + 0.99 * LR * 0.5 * (1 + math.cos(math.pi * done / EPOCHS))
        expected.append(cosine * (min(1.0, (step + 1) / warmup) if warmup else 1))
    assert rates("cosine", warmup) == pytest.approx(expected, rel=1e-12)


def test_none_is_constant_after_the_warm_up() -> None:
    assert rates("none", 3) == pytest.approx([LR / 3, 2 * LR / 3] + [LR] * 18)


def test_plateau_halves_after_three_epochs_without_a_better_ms_ssim() -> None:
    ms_ssim = (0.5, 0.4, 0.5, 0.3, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1)
    by_epoch = rates("plateau", 0, ms_ssim)[::STEPS]
    assert by_epoch == pytest.approx([LR] * 4 + [LR / 2] * 5 + [LR / 4])
    parameter = torch.nn.Parameter(torch.zeros(1))
    torchs = torch.optim.SGD([parameter], lr=LR)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torchs, "max", factor=0.5, patience=2, threshold=0)
    expected = []
    for value in ms_ssim:
        expected.append(torchs.param_groups[0]["lr"])
        plateau.step(value)
    assert by_epoch == pytest.approx(expected)


def test_plateau_under_a_warm_up() -> None:
    expected = [LR * min(1.0, (step + 1) / 3) for step in range(4 * STEPS)] + [LR / 2] * STEPS
    assert rates("plateau", 3, (0.5, 0.4, 0.4, 0.4, 0.4)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sched", ["cosine", "none", "plateau", "onecycle"])
def test_every_step_of_a_run_has_the_rate_of_its_schedule(run: Run, tmp_path: Path, sched: str) -> None:
    warmup = 0 if sched == "onecycle" else 4
    flags = ("--sched", sched, "--lr", str(LR), "--lr_warmup_steps", str(warmup), "--onecycle_pct_start", "0.3")
    assert run(*flags, "--log_every", "1", "--epochs", "2") == 0
    text = (tmp_path / "checkpoints" / "metrics.jsonl").read_text()
    seen = [line["lr"] for line in map(json.loads, text.splitlines()) if line["event"] == "train"]
    factors = [1, 1, 1, 0.505, 0.505, 0.505] if sched == "cosine" else [1] * 6
    expected = [LR * factor * min(1, (step + 1) / 4) for step, factor in enumerate(factors)]
    if sched == "onecycle":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
        torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=6, pct_start=0.3)
        expected = []
        for _ in range(6):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) < 6:
                torchs.step()
    assert seen == pytest.approx(expected, rel=1e-9)


def test_onecycle_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=LR)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * STEPS, pct_start=0.3)
    expected = []
    for step in range(EPOCHS * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < EPOCHS * STEPS - 1:
            torchs.step()
    assert rates("onecycle") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("steps", "pct_start"), [(10, 0.1), (20, 0.05), (5, 0.2), (100, 0.01), (3, 0.1), (1, 0.5)])
def test_onecycle_of_any_length(steps: int, pct_start: float) -> None:
    """A rise of exactly one step is the length that torch divides by zero for."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = Schedule(
        optimizer,
        sched="onecycle",
        lr=LR,
        epochs=1,
        steps_per_epoch=steps,
        warmup_steps=0,
        onecycle_pct_start=pct_start,
    )
    seen = []
    for step in range(steps):
        seen.append(schedule.set_rate(step, 0))
        optimizer.step()
        schedule.step_done()
    assert all(0 < rate <= LR for rate in seen)
    assert seen[-1] == min(seen) or steps == 1
