"""One training step."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relic.codec.loss import Loss, LossConfig, compute_loss
from relic.loader.feed import DeviceBatch
from train.guard import Guard
from train.preconditioning import Preconditioning
from train.schedule import Schedule


class StepValues(NamedTuple):
    """Scalars on the device; nothing here was waited for."""

    loss: Loss
    grad_norm: Tensor
    lr: float


class Stepper:
    """Forward, loss, backward, unscale, clip, step, update, zero: the hot path and nothing else."""

    def __init__(
        self,
        model: Callable[[Tensor], dict[str, Any]],
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        schedule: Schedule,
        guard: Guard,
        loss_config: LossConfig,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        max_grad_norm: float,
        preconditioning: Preconditioning | None = None,
    ) -> None:
        """A `preconditioning`'s parameters are the `parameters`."""
        self._model, self._parameters = model, parameters
        self._optimizer, self._scaler, self._schedule, self._guard = optimizer, scaler, schedule, guard
        self._loss_config, self._autocast = loss_config, autocast
        self._preconditioning = preconditioning
        self._max_grad_norm = max_grad_norm if max_grad_norm > 0 else float("inf")

    def __call__(self, batch: DeviceBatch, step: int, epoch: int) -> StepValues:
        """Train on `batch` as step `step` (from 0) of epoch `epoch` (from 0)."""
        lr = self._schedule.set_rate(step, epoch)
        with self._autocast():
            output = self._model(batch.images)
        likelihoods = output["likelihoods"]["y"]
        loss = compute_loss(batch.images, output["x_hat"], likelihoods, self._loss_config)
        self._scaler.scale(loss.total).backward()
        if self._preconditioning is not None:
            self._preconditioning.take_gradients()
        self._scaler.unscale_(self._optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._scaler.step(self._optimizer)
        if self._preconditioning is not None:
            self._preconditioning.move_kernels()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step_done()
        watched = {"the loss": loss.total, "x_hat": output["x_hat"], "the likelihoods": likelihoods}
        if not self._scaler.is_enabled():  # which skips steps with such gradients by itself
            watched["the gradient"] = grad_norm
        self._guard.watch(step, watched, batch.keys)
        return StepValues(Loss(*(part.detach() for part in loss)), grad_norm.detach(), lr)
