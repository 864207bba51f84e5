"""The trainer's learner for a variant of the step, on a batch that stays on the device."""

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks._gpu.timing import TimedStep
from relic.codec.pixels import to_float
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from relic.options import LossType, Parts
from train.arithmetic import set_backends
from train.build import build_learner
from train.config import TrainConfig
from train.learner import Learner
from train.plan import make_plan
from train.start import load_start

SIDE = 224


class LearnerVariant(NamedTuple):
    """A codec, and how it is trained."""

    channels: str
    replace_parts: Parts
    loss_type: LossType
    precision: str = "bf16"
    compile: bool = False


def precision_flags(precision: str) -> dict[str, Any]:
    """The trainer's flags for bf16, fp16, tf32 or fp32."""
    return {"amp": True, "amp_dtype": precision} if precision in ("bf16", "fp16") else {"amp": False}


@contextmanager
def tf32_as_in(precision: str) -> Iterator[None]:
    """Inside the block fp32 products use TF32, unless `precision` is fp32. Restores all of the trainer's switches."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32 = before


@contextmanager
def trainer_switches(precision: str) -> Iterator[None]:
    """Inside the block the trainer sets torch's switches. For fp32, which it has no flag for, it leaves TF32 off."""
    with tf32_as_in(precision), mock.patch("train.build.set_backends", functools.partial(_set_switches, precision)):
        yield


def _set_switches(precision: str, device: torch.device, *, mixed: bool, deterministic: bool) -> None:
    set_backends(device, mixed=mixed, deterministic=deterministic)
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32 and precision != "fp32"


@contextmanager
def learner_of(variant: LearnerVariant, shards: Path, batch_size: int, world: World) -> Iterator[Learner]:
    """A learner with new weights, in training mode. Its memory is free after the block."""
    torch.compiler.reset()
    config = TrainConfig(
        shards=str(shards), save_dir=shards.parent / "run", recon_every=0, pretrained="none", device="auto",
        channels=variant.channels, replace_parts=variant.replace_parts, loss_type=variant.loss_type, lr=1e-6,
        precondition=False, batch_size=batch_size, compile=variant.compile, overwrite=True,
        **precision_flags(variant.precision),
    )  # fmt: skip
    plan = make_plan(config)
    torch.manual_seed(0)
    learner = build_learner(plan, world, load_start(plan, world, None))
    learner.model.train()
    try:
        with tf32_as_in(variant.precision):
            _set_switches(variant.precision, world.device, mixed=config.amp is True, deterministic=False)
            yield learner
    finally:
        del learner
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def resident_images(batch_size: int, device: torch.device) -> Tensor:
    """Random images, as the feed hands them to the model."""
    shape = (batch_size, SIDE, SIDE, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return to_float(pixels.to(device))


def trainer_step(learner: Learner, batch_size: int, device: torch.device) -> TimedStep:
    """The trainer's step on a batch that stays on the device."""
    batch = DeviceBatch(resident_images(batch_size, device), [str(number) for number in range(batch_size)])
    return lambda: learner.step(batch, 0)
