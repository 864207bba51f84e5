"""Four kinds of training step: the trainer's, a bare one, a synchronous one, and one that only sleeps.

The synchronous step is that of the trainer that relic replaces: it waits for the device at each value.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.loss import Loss
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from relic.loader.loader import LoaderTimes
from train.build import build_trainer
from train.config import TrainConfig
from train.learner import Learner, StepValues
from train.plan import make_plan
from train.records import Progress, StatusLine

TrainStep = Callable[[DeviceBatch], None]


def our_step(learner: Learner, config: TrainConfig, world: World) -> TrainStep:
    """The trainer's step, and what the loop does with its values: a status line every `log_every` steps."""
    learner.model.train()
    progress = Progress()
    status = StatusLine(progress, 0, LoaderTimes(), world)

    def step(batch: DeviceBatch) -> None:
        values = learner.step(batch, progress.step)
        progress.step += 1
        progress.images_seen += config.batch_size
        status.add(values, config.batch_size)
        if progress.step % config.log_every == 0:
            status.read()

    return step


def bare_step(learner: Learner, config: TrainConfig) -> TrainStep:
    """Forward, backward, one loss, clip and step. Reads no value from the device."""
    model, optimizer = learner.model.train(), learner.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(batch: DeviceBatch) -> None:
        with learner.autocast():
            output = model(batch.images)
        loss = _loss(batch.images, output["x_hat"], output["likelihoods"]["y"], config)
        learner.scaler.scale(loss).backward()
        learner.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        learner.scaler.step(optimizer)
        learner.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def synchronous_step(learner: Learner, config: TrainConfig) -> TrainStep:
    """Computes the loss twice, once to check it and once to train. Reads each value as soon as it is computed."""
    model, optimizer = learner.model.train(), learner.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(batch: DeviceBatch) -> None:
        x = batch.images
        optimizer.zero_grad()
        with learner.autocast():
            output = model(x)
        x_hat, likelihoods = output["x_hat"].float(), output["likelihoods"]["y"].float()
        for tensor in (x_hat, likelihoods):
            assert torch.isfinite(tensor).all().item() and tensor.abs().max().item() < config.overflow_tol
        checked = _loss(x, x_hat, likelihoods, config)
        assert torch.isfinite(checked).item()
        learner.scaler.scale(_loss(x, x_hat, likelihoods, config)).backward()
        learner.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        learner.scaler.step(optimizer)
        learner.scaler.update()
        shown = [checked, norm, F.mse_loss(x_hat, x), -torch.log2(likelihoods).sum() / x[:, 0].numel()]
        for value in shown:
            value.item()

    return step


def loop_overhead_seconds(config: TrainConfig, world: World, sleep_seconds: float) -> tuple[float, int]:
    """Mean seconds between two steps (loader, feed and records), and the number of gaps between steps.

    Runs the trainer for one epoch with steps that only sleep.
    """
    sleeper = _Sleeper(sleep_seconds)
    with ExitStack() as stack:
        trainer = build_trainer(make_plan(config), world, stack)
        trainer.learner.step = sleeper  # type: ignore[method-assign]
        trainer.run()
    gaps = [began - ended for (began, _), (_, ended) in zip(sleeper.times[1:], sleeper.times, strict=False)]
    return sum(gaps) / len(gaps), len(gaps)


class _Sleeper:
    """A step that only sleeps."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.times: list[tuple[float, float]] = []

    def __call__(self, batch: DeviceBatch, step: int) -> StepValues:
        began = time.perf_counter()
        time.sleep(self._seconds)
        zero = torch.zeros(())
        values = StepValues(Loss(zero, zero, zero, zero, zero), zero, 0.0)
        self.times.append((began, time.perf_counter()))
        return values


def _loss(x: Tensor, x_hat: Tensor, likelihoods: Tensor, config: TrainConfig) -> Tensor:
    """The RD loss in fp32, computed with functions of the libraries."""
    x_hat, likelihoods = x_hat.float(), likelihoods.float()
    similarity = ms_ssim(x_hat.clamp(0, 1), x, data_range=1.0)
    distortion = config.alpha_l1 * F.l1_loss(x_hat, x) + (1 - config.alpha_l1) * (1 - similarity)
    bpp = -torch.log2(likelihoods).sum() / (x.size(0) * x.size(2) * x.size(3))
    output: Tensor = distortion + config.lambda_bpp * bpp
    return output
