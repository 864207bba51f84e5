"""A learner on a device, and a batch for it."""

from pathlib import Path

import torch

from relic.cli import parse
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from tests.train.runs import tiny
from train.build import build_learner
from train.config import TrainConfig
from train.learner import Learner
from train.plan import make_plan
from train.start import load_start


def learner_on(device: torch.device, crops: Path, folder: Path, *flags: str) -> Learner:
    """The learner of a run with `flags`, in training mode. Equal seeds give equal weights on every device."""
    argv = tiny(crops, folder, "--overwrite", "--device", device.type, *flags)
    plan, world = make_plan(parse(TrainConfig, argv, prog="train")), World(0, 1, device)
    torch.manual_seed(0)
    learner = build_learner(plan, world, load_start(plan, world, None))
    learner.model.train()
    return learner


def batch_on(device: torch.device, count: int = 4) -> DeviceBatch:
    """Random images: the same on every device."""
    x = torch.rand(count, 3, 176, 176, generator=torch.Generator().manual_seed(1))
    return DeviceBatch(x.to(device, memory_format=torch.channels_last), [str(number) for number in range(count)])
