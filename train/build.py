"""From a config to everything a run needs."""

import functools
import logging
from contextlib import ExitStack
from typing import Any

import torch
import yaml
from compressai.models import FactorizedPrior
from torch.nn.parallel import DistributedDataParallel

from relic.codec.checkpoint import Checkpoint, load_checkpoint
from relic.codec.entropy import avoid_device_reads
from relic.codec.loss import LossConfig
from relic.codec.model import Architecture
from relic.codec.precision import install_fp32_islands
from relic.codec.scope import freeze_unreachable, set_trainable_parts
from relic.distributed import World, copy_from_main, gather_to_all
from relic.errors import InputError
from relic.files import atomic_write
from relic.loader.loader import ShardLoader
from train.config import CHECKPOINTS, LAUNCH, TrainConfig, launch_name
from train.guard import Guard
from train.preconditioning import Preconditioning
from train.schedule import Schedule
from train.start import calibration_crops, load_start
from train.step import Stepper
from train.tracking import Tracker
from train.trainer import Learner, Trainer

log = logging.getLogger(__name__)


def build_trainer(
    config: TrainConfig, world: World, stack: ExitStack
) -> tuple[Trainer, Tracker | None, dict[str, Any]]:
    """Model, optimizer, loaders and records, continued from a checkpoint if one is asked for.

    Loaders and records are closed with `stack`.
    """
    _seed_everything(config.seed, config.deterministic)
    resumed = _resumed_checkpoint(config)
    _check_same_run(config, resumed, world)
    train_set, val_set = config.train_set(), config.val_set()
    if resumed is not None and resumed.fingerprint != train_set.fingerprint:
        raise InputError(f"--resume: the checkpoint was trained on other shards than {config.shards}")
    pinned = world.device.type == "cuda"
    per_rank = config.batch_size // world.size
    train_loader, val_loader = (
        stack.enter_context(
            ShardLoader(
                shards, batch_size=per_rank, threads=config.decode_threads, verify=config.verify, pin_memory=pinned
            )
        )
        for shards in (train_set, val_set)
    )
    steps_per_epoch = train_set.num_samples // config.batch_size
    learner = build_learner(config, world, resumed, steps_per_epoch)
    # Ranks start alike (same weights) and then draw different noise.
    _seed_everything(config.seed + 1 + world.rank, config.deterministic)
    trainer = Trainer(config, world, learner, train_loader, val_loader)
    if resumed is not None:
        assert resumed.training is not None
        trainer.load_training_state(resumed.training, keep_bests=config.continues_save_dir)
    values = config.plain_values()
    tracker = _build_tracker(config, world, trainer, values)
    if tracker:
        stack.callback(tracker.close)
    return trainer, tracker, values


def _seed_everything(seed: int, deterministic: bool) -> None:
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _resumed_checkpoint(config: TrainConfig) -> Checkpoint | None:
    path = config.checkpoint_to_resume
    if path is None:
        return None
    checkpoint = load_checkpoint(path, flag="--resume")
    if not checkpoint.training:
        raise InputError(
            f"--resume {path}: holds a model alone; resume from last.pt, or start with --pretrained {path}"
        )
    config.check_resumed(checkpoint.config)
    if config.swap_init not in (None, checkpoint.swap_init):
        raise InputError(
            f"--swap_init {config.swap_init}: the run to resume began {checkpoint.swap_init}; leave it out"
        )
    log.info("resuming from %s at step %d", path, checkpoint.training["progress"]["step"])
    for name, before, now in config.changed_since(checkpoint.config):
        log.info("resuming with --%s %s, where the run had %s", name, now, before)
    return checkpoint


def _check_same_run(config: TrainConfig, resumed: Checkpoint | None, world: World) -> None:
    """Before anything else is exchanged: ranks that found other checkpoints would wait for each other forever."""
    training = resumed.training if resumed is not None else None
    steps = set(gather_to_all(training["progress"]["step"] if training else 0, world))
    if len(steps) > 1:
        raise InputError(f"--save_dir {config.save_dir}: processes found runs at steps {sorted(steps)} there; "
                         "give a folder that all machines share")  # fmt: skip


def build_learner(config: TrainConfig, world: World, resumed: Checkpoint | None, steps_per_epoch: int) -> Learner:
    """Model (on the world's device), optimizer, schedule and step, with the weights of `resumed` where there is one."""
    model, architecture, swap_init = load_start(config, world, resumed)
    set_trainable_parts(model, config.replace_parts, config.train_scope)
    frozen = freeze_unreachable(model, config.loss_type)
    avoid_device_reads(model.entropy_bottleneck)
    entropy_trained = any(parameter.requires_grad for parameter in model.entropy_bottleneck.parameters())
    model.to(world.device, memory_format=torch.channels_last)
    on_cuda = world.device.type == "cuda"
    use_amp = on_cuda if config.amp == "auto" else bool(config.amp)
    islands = install_fp32_islands(model, config.local_fp32, config.fp32_class_names) if use_amp else []
    _describe(config, world, model, architecture, frozen, islands)
    preconditioning = _preconditioning(config, world, model, begins=resumed is None) if config.precondition else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = preconditioning.parameters if preconditioning else trained
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    optimizer = optimizer_class(parameters, lr=config.lr, weight_decay=config.weight_decay)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.amp_dtype]
    scaler = torch.amp.GradScaler(world.device.type, enabled=use_amp and config.amp_dtype == "fp16")
    schedule = Schedule(
        optimizer,
        sched=config.sched,
        lr=config.lr,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=config.lr_warmup_steps,
        onecycle_pct_start=config.onecycle_pct_start,
    )
    guard = Guard(world, limit=config.overflow_tol, check_values=config.overflow_check)
    loss_config = LossConfig(config.loss_type, config.distortion, config.alpha_l1, config.lambda_bpp)
    forward: Any = model
    if config.compile:
        forward = torch.compile(forward)
    if world.size > 1:
        forward = DistributedDataParallel(
            forward, device_ids=[world.device] if on_cuda else None, broadcast_buffers=False
        )
    autocast = functools.partial(torch.autocast, world.device.type, dtype=dtype, enabled=use_amp)
    stepper = Stepper(
        forward, parameters, optimizer, scaler, schedule, guard, loss_config,
        autocast=autocast, max_grad_norm=config.max_grad_norm, preconditioning=preconditioning,
    )  # fmt: skip
    return Learner(
        model, architecture, swap_init, entropy_trained, optimizer, scaler, schedule, guard, stepper, loss_config,
        preconditioning,
    )  # fmt: skip


def _preconditioning(config: TrainConfig, world: World, model: FactorizedPrior, *, begins: bool) -> Preconditioning:
    """Measured where a run begins; one that goes on has its coordinates in the checkpoint."""
    preconditioning = Preconditioning(model)
    if begins:
        preconditioning.measure(calibration_crops(config))
        copy_from_main(preconditioning.tensors(), world)
    return preconditioning


def _describe(
    config: TrainConfig, world: World, model: Any, architecture: Architecture, frozen: list[str], islands: list[str]
) -> None:
    if not world.is_main:
        return
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    channels = ",".join(map(str, architecture.channels))
    log.info("%s, channels %s, ReLU in: %s; training %d values (%s) on %d x %s", architecture.name, channels,
             architecture.replaced, sum(counts), config.train_scope, world.size, world.device.type)  # fmt: skip
    if frozen:
        log.info("frozen, since a recon loss does not reach it: the entropy bottleneck (%d tensors)", len(frozen))
    if islands:
        log.info("in fp32 under mixed precision: %s", ", ".join(islands))


def _build_tracker(config: TrainConfig, world: World, trainer: Trainer, values: dict[str, Any]) -> Tracker | None:
    if not world.is_main:
        return None
    config.save_dir.mkdir(parents=True, exist_ok=True)
    if not config.continues_save_dir:
        for name in CHECKPOINTS:
            (config.save_dir / name).unlink(missing_ok=True)
    if launch := launch_name():
        (config.save_dir / LAUNCH).write_text(launch)
    with atomic_write(config.save_dir / "config.yaml", "w") as file:
        yaml.safe_dump(values, file, sort_keys=False)
    step = trainer.progress.step if config.continues_save_dir else 0
    return Tracker(config.save_dir, config=values, use_wandb=config.wandb, wandb_id=trainer.wandb_id, step=step)
