"""The learning rate of every step, as closed forms.

With s = steps attempted, W = warm-up steps: rate = min(1, (s + 1) / W) x schedule.
"""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and only `onecycle` needs it when it runs
    import torch

_FLOOR = 100
"""cosine falls to lr / 100."""
_PLATEAU_FACTOR = 0.5
_PLATEAU_PATIENCE = 2
"""Epochs without a better validation MS-SSIM before the rate is halved."""


@dataclass
class Schedule:
    """Sets the optimizer's rate before each step."""

    optimizer: "torch.optim.Optimizer"
    _: KW_ONLY
    sched: str
    """`cosine`, `plateau`, `onecycle` or `none`."""
    lr: float
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    onecycle_pct_start: float
    """The share of all steps in which `onecycle` rises."""
    best: float = field(default=-math.inf, init=False)
    stale: int = field(default=0, init=False)
    """Epochs since the best validation MS-SSIM."""
    halvings: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._onecycle: torch.optim.lr_scheduler.OneCycleLR | None = None
        if self.sched == "onecycle" and self.epochs:
            from torch.optim.lr_scheduler import OneCycleLR

            total_steps = self.epochs * self.steps_per_epoch
            pct_start = self.onecycle_pct_start
            if pct_start * total_steps == 1:
                pct_start *= 1 + 1e-6  # torch divides by the number of rising steps less one
            self._onecycle = OneCycleLR(self.optimizer, max_lr=self.lr, total_steps=total_steps, pct_start=pct_start)

    def set_rate(self, step: int) -> float:
        """Set the rate of step `step` (counted from 0) and return it."""
        if self._onecycle is not None:
            return float(self.optimizer.param_groups[0]["lr"])
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        rate = warmup * self._scheduled(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _scheduled(self, step: int) -> float:
        if self.sched == "cosine":
            lowest, steps = self.lr / _FLOOR, max(self.epochs * self.steps_per_epoch, 1)
            return lowest + (self.lr - lowest) * (1 + math.cos(math.pi * step / steps)) / 2
        if self.sched == "plateau":
            return self.lr * _PLATEAU_FACTOR**self.halvings
        return self.lr

    def step_done(self) -> None:
        """Tell a per-step schedule that the optimizer has stepped."""
        if self._onecycle is not None and self._onecycle.last_epoch + 1 < self._onecycle.total_steps:
            self._onecycle.step()

    def epoch_done(self, val_ms_ssim: float) -> None:
        """Tell plateau how the validation went."""
        if val_ms_ssim > self.best:
            self.best, self.stale = val_ms_ssim, 0
            return
        self.stale += 1
        if self.stale > _PLATEAU_PATIENCE:
            self.halvings, self.stale = self.halvings + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What arithmetic on step and epoch cannot give."""
        onecycle = self._onecycle.state_dict() if self._onecycle is not None else None
        if onecycle is not None:
            onecycle = {name: onecycle[name] for name in ("last_epoch", "_step_count")}
        return {"best": self.best, "stale": self.stale, "halvings": self.halvings, "onecycle": onecycle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.stale, self.halvings = state["best"], state["stale"], state["halvings"]
        if self._onecycle is not None:
            self._onecycle.load_state_dict(state["onecycle"])
