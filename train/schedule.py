"""The learning rate of every step, as closed forms.

With s = steps attempted, e = epochs done, W = warm-up steps: rate = min(1, (s + 1) / W) x schedule.
"""

import math
from typing import Any

import torch

_FLOOR = 100
"""cosine falls to lr / 100."""
_PLATEAU_FACTOR = 0.5
_PLATEAU_PATIENCE = 2
"""Epochs without a better validation MS-SSIM before the rate is halved."""


class Schedule:
    """Sets the optimizer's rate before each step."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        sched: str,
        lr: float,
        epochs: int,
        steps_per_epoch: int,
        warmup_steps: int,
        onecycle_pct_start: float,
    ) -> None:
        self._optimizer = optimizer
        self._sched, self._lr, self._epochs, self._warmup_steps = sched, lr, max(epochs, 1), warmup_steps
        self._best, self._stale, self._halvings = -math.inf, 0, 0
        self._onecycle = None
        if sched == "onecycle" and epochs:
            total_steps = epochs * steps_per_epoch
            if onecycle_pct_start * total_steps == 1:
                onecycle_pct_start *= 1 + 1e-6  # torch divides by the rise's length less one step
            self._onecycle = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=lr, total_steps=total_steps, pct_start=onecycle_pct_start
            )

    def set_rate(self, step: int, epoch: int) -> float:
        """Set the rate of step `step` (counted from 0) in epoch `epoch` (epochs done) and return it."""
        if self._onecycle is not None:
            return float(self._optimizer.param_groups[0]["lr"])
        warmup = min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        rate = warmup * self._scheduled(epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _scheduled(self, epoch: int) -> float:
        if self._sched == "cosine":
            lowest = self._lr / _FLOOR
            return lowest + (self._lr - lowest) * (1 + math.cos(math.pi * epoch / self._epochs)) / 2
        if self._sched == "plateau":
            return self._lr * _PLATEAU_FACTOR**self._halvings
        return self._lr

    def step_done(self) -> None:
        """Tell a per-step schedule that the optimizer has stepped."""
        if self._onecycle is not None and self._onecycle.last_epoch + 1 < self._onecycle.total_steps:
            self._onecycle.step()

    def epoch_done(self, val_ms_ssim: float) -> None:
        """Tell plateau how the validation went."""
        if val_ms_ssim > self._best:
            self._best, self._stale = val_ms_ssim, 0
            return
        self._stale += 1
        if self._stale > _PLATEAU_PATIENCE:
            self._halvings, self._stale = self._halvings + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What arithmetic on step and epoch cannot give."""
        onecycle = self._onecycle.state_dict() if self._onecycle is not None else None
        if onecycle is not None:
            onecycle = {name: onecycle[name] for name in ("last_epoch", "_step_count")}
        return {"best": self._best, "stale": self._stale, "halvings": self._halvings, "onecycle": onecycle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._stale, self._halvings = state["best"], state["stale"], state["halvings"]
        if self._onecycle is not None:
            self._onecycle.load_state_dict(state["onecycle"])
