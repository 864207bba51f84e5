"""Load the model that a run starts from, replace GDN by ReLU, and calibrate it."""

import logging
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from compressai.models import FactorizedPrior
from tqdm import tqdm

from relic.codec.checkpoint import Checkpoint, load_checkpoint
from relic.codec.model import Architecture, replace_gdn_with_relu
from relic.codec.pretrained import load_codec
from relic.columns import counted
from relic.distributed import World, copy_from_main, wait_for_all
from relic.errors import InputError, before_work
from relic.machine import keep_freed_memory
from relic.storage.remote_file import local_name
from relic.storage.urls import without_secrets
from relic.swap.calibrated import swap_calibrated
from train.calibration_crops import calibration_crops
from train.config import TrainConfig
from train.plan import TrainPlan
from train.resumed import check_progress
from train.resumed_flags import changed_since, check_resumed

log = logging.getLogger(__name__)


def not_calibrated(config: TrainConfig) -> str:
    """The message for layers that cannot be measured on the train crops."""
    return (
        f"on the train crops, the layers of --pretrained {without_secrets(config.pretrained)} have outputs that are "
        "not finite or too large to fit; its weights have diverged, use another checkpoint"
    )


class Start(NamedTuple):
    """A model on the world's device, the same on every rank."""

    model: FactorizedPrior
    architecture: Architecture
    swap_init: str
    """How the swapped layers started: `calibrated`, `naive`, `none` (none swapped) or `unknown` (a CompressAI file)."""


def load_resumed(plan: TrainPlan, world: World) -> Checkpoint | None:
    """The checkpoint to continue from. Raises InputError if it holds no run, or a run with other flags."""
    config, path = plan.config, plan.resume
    if path is None:
        return None
    checkpoint = load_checkpoint(path, flag="--resume")
    if not checkpoint.training:
        raise InputError(f"--resume {path}: holds only a model; resume from last.pt, or start with --pretrained {path}")
    check_progress(checkpoint.training, f"--resume {path}")
    check_resumed(config, checkpoint.config)
    # A run from a codec with ReLU swaps nothing: its checkpoints keep that codec's start, whatever its flag says.
    if config.swap_init not in (None, checkpoint.swap_init, checkpoint.config.get("swap_init")):
        raise InputError(
            f"--swap_init {config.swap_init}: the run to resume started with {checkpoint.swap_init}; leave the flag out"
        )
    if world.is_main:
        log.info("resuming from %s at step %d", path, checkpoint.training["progress"]["step"])
        for name, before, now in changed_since(config, checkpoint.config):
            log.info("resuming with --%s %s; the run had %s", name, now, before)
    return checkpoint


def load_start(plan: TrainPlan, world: World, resumed: Checkpoint | None) -> Start:
    """Load, swap and calibrate the model. A resumed run takes the result from its checkpoint."""
    keep_freed_memory()  # for the calibration, and for the steps on a CPU
    if resumed is not None:
        with before_work():
            model = resumed.build(f"--resume {plan.resume}")
        return Start(model.to(world.device), resumed.architecture, resumed.swap_init)
    config = plan.config
    model, codec = _load(config, world)
    if codec.quantization and not config.qat and world.is_main:
        log.warning(
            "--pretrained %s was trained with --qat; this run trains in float, and drops its 8-bit steps. "
            "Give --qat to keep the roundings in training",
            without_secrets(config.pretrained),
        )
    if config.initialisation == "calibrated":
        _calibrate(model, plan, world)
    replace_gdn_with_relu(model, config.replace_parts)
    architecture = codec.architecture.with_relu_in(config.replace_parts)
    copy_from_main(model.state_dict().values(), world)
    swap_init: str = config.initialisation
    if architecture == codec.architecture:
        swap_init = codec.swap_init
        if config.swap_init and world.is_main:
            log.warning(
                "--swap_init %s: the parts of --pretrained %s have ReLU already, and start with its weights",
                config.swap_init,
                without_secrets(config.pretrained),
            )
    return Start(model, architecture, swap_init)


def _calibrate(model: FactorizedPrior, plan: TrainPlan, world: World) -> None:
    """Calibrate on rank 0 alone. The caller copies its weights to the other ranks."""
    if not world.is_main:
        return
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(desc="calibrating", total=1.0, bar_format=layout, disable=None, leave=False) as bar:
        began = time.perf_counter()
        crops = calibration_crops(plan)
        try:
            with np.errstate(all="ignore"):  # what overflows is reported below
                fitted = swap_calibrated(
                    model,
                    plan.config.replace_parts,
                    crops.images,
                    num_held_out=crops.num_held_out,
                    on_progress=lambda share: bar.update(share - bar.n),
                )
        except torch.linalg.LinAlgError as error:
            raise InputError(f"--swap_init calibrated: {not_calibrated(plan.config)}") from error
    if not all(math.isfinite(layer.error) for layer in fitted):
        raise InputError(f"--swap_init calibrated: {not_calibrated(plan.config)}")
    for layer in fitted:
        relu = "" if layer.shift is None else f"ReLU before it at {layer.shift} sigma, {layer.clipped:.2%} clipped, "
        relu += "one of them bent at bright colours, " if layer.bent else ""
        log.info("calibrated %s: %serror %.4f on held-out crops", layer.name, relu, layer.error)
    if fitted:
        images = counted(crops.num_sources, "image")
        log.info("calibrated on %d crops of %s in %.1f s", len(crops.images), images, time.perf_counter() - began)
    if fitted and crops.num_sources == 1:
        log.warning(
            "all calibration crops are of one image: the choices are tested on the image they were fitted to; "
            "pack more images"
        )


def _load(config: TrainConfig, world: World) -> tuple[FactorizedPrior, Checkpoint]:
    if config.pretrained == "zoo" and not world.is_main:
        wait_for_all(world)  # rank 0 downloads, the others find the file
    codec = load_codec(local_name(config.pretrained), quality=config.quality, channels=config.channel_pair)
    if config.pretrained == "zoo" and world.is_main:
        wait_for_all(world)
    return codec.build(f"--pretrained {without_secrets(config.pretrained)}").to(world.device), codec
