"""The training step, and what it changes: the model, the optimizer, the gradient scaler and the schedule."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import refresh_tables
from relic.codec.loss import Loss, LossConfig, compute_loss, loss_formula
from relic.loader.device_feed import DeviceBatch
from train.guard import Guard
from train.preconditioning import Preconditioning
from train.quantizing import Quantizing
from train.schedule import Schedule


class StepValues(NamedTuple):
    """Scalars on the device. To make them, the host did not wait for the device."""

    loss: Loss
    grad_norm: Tensor
    lr: float


@dataclass(kw_only=True)
class Learner:
    """Owns everything that training changes, except the trainer's progress."""

    model: FactorizedPrior
    forward: Callable[[Tensor], dict[str, Any]]
    """The model that the step calls: `model`, compiled or wrapped for several ranks if needed."""
    entropy_trained: bool
    """Whether the entropy bottleneck is trained. Then its quantiles must be solved again."""
    optimizer: torch.optim.Optimizer
    """Holds the parameters of `preconditioning`, if there is one."""
    scaler: torch.amp.GradScaler
    schedule: Schedule
    loss_config: LossConfig
    loss_formula: Callable[..., Loss] = loss_formula
    """Compiled with --compile."""
    guard: Guard
    preconditioning: Preconditioning | None = None
    quantizing: Quantizing | None = None
    autocast: Callable[[], AbstractContextManager[Any]]
    max_grad_norm: float
    """Larger gradients are scaled down to this norm; 0 or less: never."""
    rounded_from: int
    """The first step of --rounded_epochs; the number of all steps without them."""
    _tables_are_old: bool = field(default=True, init=False)

    def step(self, batch: DeviceBatch, step: int) -> StepValues:
        """Train on `batch` in step `step` (from 0).

        Raises DivergedError or StopRequested from the guard, after the optimizer's step.
        """
        self._tables_are_old = True
        lr = self.schedule.set_rate(step)
        rounds = step >= self.rounded_from
        self.model.entropy_bottleneck.train(not rounds)
        if self.quantizing is not None:
            self.quantizing.begin_step(step)
        with self.autocast():
            output = self.forward(batch.images)
        likelihoods = output["likelihoods"]["y"]
        loss = compute_loss(batch.images, output["x_hat"], likelihoods, self.loss_config, self.loss_formula)
        self.scaler.scale(loss.total).backward()
        if self.quantizing is not None:
            self.quantizing.average_gradients()
        if rounds:  # rounding has a gradient of zero
            for parameter in self.model.g_a.parameters():
                parameter.grad = None
        if self.preconditioning is not None:
            self.preconditioning.take_gradients()
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip_gradients()
        self.scaler.step(self.optimizer)
        if self.preconditioning is not None:
            self.preconditioning.move_kernels()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step_done()
        watched = {"the loss": loss.total, "x_hat": output["x_hat"], "the likelihoods": likelihoods}
        if not self.scaler.is_enabled():  # an enabled GradScaler skips steps with non-finite gradients itself
            watched["the gradient"] = grad_norm
        self.guard.watch(step, watched, batch.keys)
        return StepValues(Loss(*(part.detach() for part in loss)), grad_norm.detach(), lr)

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients and return their norm before clipping."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self.max_grad_norm if self.max_grad_norm > 0 else float("inf"))

    def refresh_tables(self, steps_done: int) -> None:
        """Solve the quantiles and make the CDF tables, once per state of the weights.

        After the first rounded step the quantiles stay. So the latents are always rounded about the same medians, and
        it makes no difference when a run is saved.
        """
        if self._tables_are_old:
            refresh_tables(self.model, solve=self.entropy_trained and steps_done <= self.rounded_from)
            self._tables_are_old = False

    def check(self, steps_done: int) -> None:
        """Raise DivergedError if the last step's values or the weights after it are bad and must not be saved."""
        self.guard.settle()
        self.guard.check_weights(self.model.parameters(), steps_done - 1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds besides the model's tensors."""
        quantizing = {"quantizing": self.quantizing.state_dict()} if self.quantizing else {}
        return {
            "optimizer": self.optimizer.state_dict(),
            "preconditioning": self.preconditioning.state_dict() if self.preconditioning else None,
            **quantizing,
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`. Other entries of `state` are ignored."""
        saved = state["optimizer"]
        # `fused`, where an optimizer has it, belongs to this device, not to the run.
        pairs = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        groups = [{**group, **{name: own[name] for name in own.keys() & {"fused"}}} for group, own in pairs]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        for parameter, values in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):  # in the memory format of the parameter, as a fused optimizer needs
                values[name] = torch.empty_like(parameter).copy_(values[name])
        if self.preconditioning:
            self.preconditioning.load_state_dict(state["preconditioning"])
        if self.quantizing:
            self.quantizing.load_state_dict(state["quantizing"])
        if state["scaler"]:  # it is empty if the run used no scaler
            self.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["schedule"])
