"""Rates against torch's own schedulers, and those of a whole run against the closed forms."""

import json
from pathlib import Path

import pytest
import torch

from tests.train.runs import Run
from tests.train.test_schedule import EPOCHS, LR, STEPS, rates
from train.schedule import Schedule


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, pct_start: float) -> Schedule:
    return Schedule(
        optimizer,
        sched="onecycle",
        lr=LR,
        epochs=1,
        steps_per_epoch=steps,
        warmup_steps=0,
        onecycle_pct_start=pct_start,
    )


def onecycle_rates(steps: int, pct_start: float) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = schedule_of(optimizer, steps, pct_start)
    seen = []
    for step in range(steps):
        seen.append(schedule.set_rate(step))
        optimizer.step()
        schedule.step_done()
    return seen


def test_plateau_is_torchs_reduce_lr_on_plateau() -> None:
    ms_ssim = (0.5, 0.4, 0.5, 0.3, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    torchs = torch.optim.SGD([parameter], lr=LR)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torchs, "max", factor=0.5, patience=2, threshold=0)
    expected = []
    for value in ms_ssim:
        expected.append(torchs.param_groups[0]["lr"])
        plateau.step(value)
    assert rates("plateau", 0, ms_ssim)[::STEPS] == pytest.approx(expected)


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
    assert onecycle_rates(EPOCHS * STEPS, 0.3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("steps", "pct_start"), [(10, 0.1), (20, 0.05), (5, 0.2), (100, 0.01), (3, 0.1), (1, 0.5)])
def test_onecycle_of_any_length(steps: int, pct_start: float) -> None:
    """A rise of exactly one step is the length that torch divides by zero for."""
    seen = onecycle_rates(steps, pct_start)
    assert all(0 < rate <= LR for rate in seen)
    assert seen[-1] == min(seen) or steps == 1


@pytest.mark.parametrize("sched", ["cosine", "none", "plateau", "onecycle"])
def test_every_step_of_a_run_has_the_rate_of_its_schedule(run: Run, tmp_path: Path, sched: str) -> None:
    warmup = 0 if sched == "onecycle" else 4
    flags = ("--sched", sched, "--lr", str(LR), "--lr_warmup_steps", str(warmup), "--onecycle_pct_start", "0.3")
    assert run(*flags, "--log_every", "1", "--epochs", "2") == 0
    text = (tmp_path / "checkpoints" / "metrics.jsonl").read_text()
    seen = [line["lr"] for line in map(json.loads, text.splitlines()) if line["event"] == "train"]
    expected = [LR * min(1, (step + 1) / 4) for step in range(6)]
    if sched == "cosine":
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=LR)
        torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=LR / 100)
        for step in range(6):
            expected[step] *= optimizer.param_groups[0]["lr"] / LR
            optimizer.step()
            torchs.step()
    if sched == "onecycle":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=6, pct_start=0.3)
        expected = []
        for _ in range(6):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) < 6:
                one_cycle.step()
    assert seen == pytest.approx(expected, rel=1e-9)
