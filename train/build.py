"""Build a run from its plan: the model, the optimizer, the loaders and the records."""

import dataclasses
import functools
import inspect
import logging
from contextlib import ExitStack
from typing import Any

import torch
from compressai.models import FactorizedPrior
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from relic.codec.checkpoint import Checkpoint
from relic.codec.entropy import lighten_forward
from relic.codec.loss import LossConfig, loss_formula
from relic.codec.precision import keep_in_fp32
from relic.codec.scope import freeze_unreachable, set_trainable_parts
from relic.distributed import World, copy_from_main
from relic.errors import InputError, RefusedError, before_work
from relic.loader.loader import ShardLoader
from relic.options import Switch
from relic.storage.run_copy import RunCopy, remove
from train.arithmetic import mixed_dtype, set_backends
from train.calibration_crops import calibration_crops
from train.config import TrainConfig
from train.guard import Guard
from train.learner import Learner
from train.plan import CHECKPOINTS, TrainPlan
from train.preconditioning import Preconditioning
from train.quantizing import Quantizing, start_quantizing
from train.resumed import check_training
from train.resumed_flags import started_with, taken_over
from train.run_folder import check_same_run, enter_folder, open_records
from train.schedule import Schedule
from train.soap import Soap
from train.start import Start, load_resumed, load_start, not_calibrated
from train.trainer import Trainer

log = logging.getLogger(__name__)

_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
"""For DistributedDataParallel: each step leaves the buffers as they are."""
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:  # before torch 2.14
    _KEEP_BUFFERS = {"broadcast_buffers": False}


def build_trainer(plan: TrainPlan, world: World, stack: ExitStack) -> Trainer:
    """Build the trainer. If the plan names a checkpoint, the run continues from it.

    `stack` closes the loaders and the records. Raises InputError if the checkpoint does not fit the flags or shards.
    """
    config = plan.config
    plan, launches = enter_folder(plan, world, stack)
    copy = None
    if world.is_main and config.save_url is not None:
        with before_work():
            copy = stack.enter_context(RunCopy(config.save_dir, config.save_url))
    with before_work():
        mixed = mixed_dtype(_amp(config), config.amp_dtype, world.device) is not None
    set_backends(world.device, mixed=mixed, deterministic=config.deterministic)
    torch.manual_seed(config.seed)
    plan, resumed = _load_resumed(plan, world)
    config = plan.config
    train_loader, val_loader = _open_loaders(plan, world, stack)
    start = load_start(plan, world, resumed)
    learner = build_learner(plan, world, start)
    # All ranks start with the same weights. From here each rank draws its own quantisation noise.
    torch.manual_seed(config.seed + 1 + world.rank)
    trainer = Trainer(
        plan=plan, world=world, start=start, learner=learner, train_loader=train_loader, val_loader=val_loader
    )
    training = resumed.training if resumed is not None else None
    if training is not None:
        with before_work():
            check_training(training, plan, learner, f"--resume {plan.resume}")
        trainer.load_state_dict(training)
    if world.is_main:
        trainer.copy = copy
        if config.save_url is not None and not plan.continues:
            remove(config.save_url, CHECKPOINTS)
        trainer.tracker = open_records(plan, training, launches)
        stack.callback(trainer.tracker.close)
    return trainer


def _load_resumed(plan: TrainPlan, world: World) -> tuple[TrainPlan, Checkpoint | None]:
    """Load the checkpoint to continue from. The plan gets the flags of its run."""
    config = plan.config
    with before_work():
        resumed = load_resumed(plan, world)
        if resumed is not None:
            config = taken_over(config, resumed.config)
            plan = dataclasses.replace(plan, config=config, began_with=started_with(resumed.config))
    check_same_run(config, resumed, world)
    if resumed is not None and not plan.train_set.has_fingerprint(resumed.fingerprint):
        raise RefusedError(f"--resume: the checkpoint was trained on other shards than {plan.train_set.folder}")
    return plan, resumed


def _open_loaders(plan: TrainPlan, world: World, stack: ExitStack) -> list[ShardLoader]:
    """The loaders of the train and the val set."""
    config = plan.config
    loaders = [
        stack.enter_context(
            ShardLoader(
                shards,
                batch_size=config.batch_size // world.size,
                threads=config.decode_threads,
                io_threads=config.io_threads,
                direct=config.direct,
                verify=config.verify,
                pin_memory=world.device.type == "cuda",
            )
        )
        for shards in (plan.train_set, plan.val_set)
    ]
    if world.is_main:
        for loader in loaders:
            log.info("%s", loader.reading)
    return loaders


def _amp(config: TrainConfig) -> Switch:
    """Quantization-aware training is in fp32."""
    return False if config.qat and config.amp == "auto" else config.amp


def build_learner(plan: TrainPlan, world: World, start: Start) -> Learner:
    """Prepare the model of `start` for training, with a new optimizer and schedule."""
    config, model = plan.config, start.model
    set_trainable_parts(model, config.replace_parts, config.train_scope)
    frozen = freeze_unreachable(model, config.loss_type)
    lighten_forward(model.entropy_bottleneck, rate_is_trained=config.loss_type == "rd")
    model.to(world.device, memory_format=torch.channels_last)
    dtype = mixed_dtype(_amp(config), config.amp_dtype, world.device)
    kept_in_fp32 = keep_in_fp32(model, config.local_fp32, config.fp32_class_names, dtype) if dtype else []
    if world.is_main:
        _describe(config, world, start, frozen, kept_in_fp32)
    preconditioning = _preconditioning(plan, world, start) if config.preconditioned else None
    quantizing = _quantizing(plan, world, model) if config.qat else None
    optimizer = build_optimizer(config, model, preconditioning, quantizing, world)
    return Learner(
        model=model,
        forward=_shared(model, config, world),
        entropy_trained=any(parameter.requires_grad for parameter in model.entropy_bottleneck.parameters()),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16),
        schedule=Schedule(
            optimizer,
            sched=config.sched,
            lr=config.peak_lr,
            epochs=config.epochs,
            steps_per_epoch=plan.steps_per_epoch,
            warmup_steps=config.warmup_steps,
            onecycle_pct_start=config.onecycle_pct_start,
        ),
        loss_config=LossConfig(config.loss_type, config.distortion, config.alpha_l1, config.lambda_bpp),
        loss_formula=torch.compile(loss_formula) if config.compile else loss_formula,
        guard=Guard(world, limit=config.overflow_tol, check_values=config.overflow_check),
        preconditioning=preconditioning,
        quantizing=quantizing,
        autocast=functools.partial(
            torch.autocast,
            world.device.type,
            dtype=dtype or torch.bfloat16,
            enabled=dtype is not None,
        ),
        max_grad_norm=config.max_grad_norm,
        rounded_from=(config.epochs - config.rounded_epochs) * plan.steps_per_epoch,
    )


def _preconditioning(plan: TrainPlan, world: World, start: Start) -> Preconditioning:
    """Measured at the start of a run. A resumed run loads its coordinates from the checkpoint."""
    config, preconditioning = plan.config, Preconditioning(start.model)
    if plan.resume is None:
        try:
            preconditioning.measure(calibration_crops(plan).images)
        except torch.linalg.LinAlgError as error:
            raise InputError(f"--precondition: {not_calibrated(config)} ({error})") from error
        copy_from_main(preconditioning.tensors(), world)
    return preconditioning


def _quantizing(plan: TrainPlan, world: World, model: FactorizedPrior) -> Quantizing:
    """A resumed run loads the steps of activations from its checkpoint."""
    crops = calibration_crops(plan).images if plan.resume is None else None
    num_steps = plan.config.epochs * plan.steps_per_epoch
    config = plan.config
    return start_quantizing(
        model, config.qat_upsample, crops, ranges=config.qat_ranges, num_steps=num_steps, world=world
    )


def build_optimizer(
    config: TrainConfig,
    model: FactorizedPrior,
    preconditioning: Preconditioning | None,
    quantizing: Quantizing | None,
    world: World,
) -> torch.optim.Optimizer:
    """One kernel for all parameters on CUDA. It also skips a step by itself, so a gradient scaler reads no value.

    On a CPU the plain optimizer: the fused one rounds differently there, and gains nothing beside the convolutions.
    SOAP has no such kernel.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = preconditioning.parameters if preconditioning else trained
    parameters += quantizing.parameters if quantizing else []
    if config.optimizer == "soap":
        return Soap(parameters, lr=config.peak_lr, share=functools.partial(copy_from_main, world=world))
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    fused = True if world.device.type == "cuda" else None
    result: torch.optim.Optimizer = optimizer_class(
        parameters, lr=config.peak_lr, weight_decay=config.weight_decay, fused=fused
    )
    return result


def _shared(model: FactorizedPrior, config: TrainConfig, world: World) -> Any:
    """`model`, compiled with --compile. With several ranks, its gradients are averaged over them."""
    forward: nn.Module | Any = torch.compile(model) if config.compile else model
    if world.size == 1:
        return forward
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=devices, **_KEEP_BUFFERS)


def _describe(config: TrainConfig, world: World, start: Start, frozen: list[str], kept_in_fp32: list[str]) -> None:
    architecture = start.architecture
    log.info(
        "%s, channels %s, ReLU in: %s; training %d values (%s) on %d x %s",
        architecture.name,
        ",".join(map(str, architecture.channels)),
        architecture.replaced,
        sum(parameter.numel() for parameter in start.model.parameters() if parameter.requires_grad),
        config.train_scope,
        world.size,
        world.device.type,
    )
    if config.rounded_epochs:
        log.info(
            "the last %d of %d epochs train decoder and entropy bottleneck on rounded latents; the encoder stays",
            config.rounded_epochs,
            config.epochs,
        )
    if frozen:
        log.info("the entropy bottleneck is frozen (%d tensors): a recon loss has no gradient for it", len(frozen))
    if kept_in_fp32:
        log.info("in fp32 under mixed precision: %s", ", ".join(kept_in_fp32))
