"""The training state of a checkpoint, checked before a run continues from it.

A file may hold any value anywhere. Each value is compared with what this run, with the same flags, would have written:
its type, its range, and for tensors the shape.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relic.codec.checkpoint import shown
from relic.codec.tensor_file import fault_of, is_real
from relic.errors import InputError
from train.learner import Learner
from train.plan import TrainPlan
from train.soap import Soap

_MOST = 1 << 53
_STEPS = ("epoch", "images", "images_seen", "step")
_MOVING = ("lr", "betas", "params")
"""Values of an optimizer's group that change in a run. `fused` depends on the device, and is checked apart."""


class _Fault(ValueError):
    """What is wrong with a state, as the end of a message."""


def check_progress(training: Mapping[str, Any], source: str) -> None:
    """Check what is used before the model is built: the steps done. Raises InputError naming `source`."""
    progress = training.get("progress")
    if not isinstance(progress, dict) or set(progress) != set(_STEPS):
        raise _damaged(source, "progress does not hold " + ", ".join(_STEPS))
    for name in _STEPS:
        if not _is_count(progress[name]):
            raise _damaged(source, f"progress: {name} is {shown(progress[name])}")


def check_training(training: Mapping[str, Any], plan: TrainPlan, learner: Learner, source: str) -> None:
    """Check the whole state against the run's own. Raises InputError naming `source`."""
    try:
        _check_steps(training["progress"], plan)
        own = learner.state_dict()
        _check_optimizer(training["optimizer"], learner.optimizer)
        if learner.preconditioning is not None:
            _check_preconditioning(training["preconditioning"], learner.preconditioning.shapes())
        quantizing = training.get("quantizing")  # only runs with --qat have it
        if learner.quantizing is not None:
            _check_steps_of_activations(quantizing, learner.quantizing.state_dict())
        else:
            _require(quantizing is None, "quantizing", quantizing)
        _check_scaler(training["scaler"], own["scaler"])
        _check_schedule(training["schedule"], own["schedule"], plan)
        for name in ("best_ms_ssim", "best_loss"):
            _require(type(training[name]) in (int, float) and not math.isnan(training[name]), name, training[name])
        wandb_id = training["wandb_id"]
        _require(wandb_id is None or (isinstance(wandb_id, str) and wandb_id.isprintable()), "wandb_id", wandb_id)
        _check_random(training["random"])
    except KeyError as error:
        raise _damaged(source, f"{error} is missing") from None
    except _Fault as error:
        raise _damaged(source, str(error)) from None
    except Exception as error:  # a file may hold any type in any place
        raise _damaged(source, f"{type(error).__name__}: {error}") from error


def _check_steps(progress: Mapping[str, int], plan: TrainPlan) -> None:
    """The numbers of a run follow from each other."""
    batch_size = plan.config.batch_size
    steps_here, odd = divmod(progress["images"], batch_size)
    _require(progress["epoch"] <= plan.config.epochs, "progress: epoch", progress["epoch"])
    _require(not odd and steps_here <= plan.steps_per_epoch, "progress: images", progress["images"])
    step = progress["epoch"] * plan.steps_per_epoch + steps_here
    _require(progress["step"] == step, "progress: step", progress["step"])
    _require(progress["images_seen"] == step * batch_size, "progress: images_seen", progress["images_seen"])


def _check_optimizer(found: Any, optimizer: torch.optim.Optimizer) -> None:
    own = optimizer.state_dict()
    groups = _dict(found, "optimizer")["param_groups"]
    _require(isinstance(groups, list) and len(groups) == len(own["param_groups"]), "optimizer: param_groups", groups)
    for group, wanted in zip(groups, own["param_groups"], strict=True):
        numbers = _dict(group, "optimizer: param_groups")["params"]
        _require(isinstance(numbers, list) and numbers == wanted["params"], "optimizer: params", numbers)
        for name in wanted:
            if name not in group and type(wanted[name]) in (bool, type(None)):
                continue  # torch adds the switches that its older versions did not have
            value = group[name]
            if name == "fused":
                _require(value is None or type(value) is bool, "optimizer: fused", value)
            elif name not in _MOVING:
                _require(type(value) is type(wanted[name]) and value == wanted[name], f"optimizer: {name}", value)
        lr, betas = group["lr"], group["betas"]
        _require(type(lr) is float and 0 <= lr < math.inf, "optimizer: lr", lr)
        _require(isinstance(betas, tuple | list) and len(betas) == 2, "optimizer: betas", betas)
        _require(all(type(beta) is float and 0 <= beta < 1 for beta in betas), "optimizer: betas", betas)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = _dict(found["state"], "optimizer: state")
    # Before the first step, an optimizer has no state.
    _require(set(states) <= set(range(len(parameters))), "optimizer: state", "for other parameters")
    for number, state in states.items():
        shape = tuple(parameters[number].shape)
        shapes: dict[str, tuple[int, ...]] = {"exp_avg": shape, "exp_avg_sq": shape}
        if isinstance(optimizer, Soap):
            shapes = optimizer.state_shapes(parameters[number])
        names = set(_dict(state, "optimizer: state"))
        _require(names == {"step", *shapes}, "optimizer: state", ", ".join(map(str, names)))
        step = state["step"].item() if isinstance(state["step"], Tensor) else state["step"]
        _require(type(step) in (int, float) and 0 <= step < _MOST, "optimizer: step", step)
        for name, wanted_shape in shapes.items():
            _check_tensor(state[name], wanted_shape, f"optimizer: {name} {number}")
        _require(bool((state["exp_avg_sq"] >= 0).all()), f"optimizer: exp_avg_sq {number}", "negative")


def _check_preconditioning(found: Any, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    for name, layer in shapes.items():
        coordinates = _dict(_dict(found, "preconditioning")[name], f"preconditioning: {name}")
        _require(set(coordinates) == set(layer), f"preconditioning: {name}", ", ".join(map(str, coordinates)))
        for entry, shape in layer.items():
            _check_tensor(coordinates[entry], shape, f"preconditioning: {name} {entry}")


def _check_steps_of_activations(found: Any, own: Mapping[str, Tensor]) -> None:
    names = set(_dict(found, "quantizing"))
    _require(names == set(own), "quantizing", ", ".join(map(str, names)))
    for name, tensor in own.items():
        _check_tensor(found[name], tuple(tensor.shape), f"quantizing: {name}")


def _check_scaler(found: Any, own: Mapping[str, Any]) -> None:
    if not _dict(found, "scaler") or not own:  # that run, or this one, has no scaler
        return
    for name in own:
        value = found[name]
        if name in ("scale", "_growth_tracker"):
            _require(type(value) in (int, float) and 0 <= value < math.inf, f"scaler: {name}", value)
        else:
            _require(type(value) is type(own[name]) and value == own[name], f"scaler: {name}", value)
    _require(found["scale"] > 0, "scaler: scale", found["scale"])


def _check_schedule(found: Any, own: Mapping[str, Any], plan: TrainPlan) -> None:
    best = _dict(found, "schedule")["best"]
    _require(type(best) is float and not math.isnan(best), "schedule: best", best)
    for name in ("stale", "halvings"):
        _require(_is_count(found[name]) and found[name] <= plan.config.epochs, f"schedule: {name}", found[name])
    onecycle = found["onecycle"]
    _require((onecycle is None) == (own["onecycle"] is None), "schedule: onecycle", onecycle)
    if onecycle is not None:
        _dict(onecycle, "schedule: onecycle")
    for name in own["onecycle"] or ():
        most = plan.config.epochs * plan.steps_per_epoch + 1
        _require(_is_count(onecycle[name]) and onecycle[name] <= most, f"schedule: {name}", onecycle[name])


def _check_random(found: Any) -> None:
    _require(isinstance(found, list) and len(found) > 0, "random", found)
    own = torch.get_rng_state()
    for state in found:
        _dict(state, "random")
        _require(_is_bytes(state["torch"]) and state["torch"].shape == own.shape, "random: torch", state["torch"])
        _require(state["cuda"] is None or _is_bytes(state["cuda"]), "random: cuda", state["cuda"])


def _check_tensor(value: Any, shape: tuple[int, ...], name: str) -> None:
    if fault := fault_of(value):
        raise _Fault(f"{name} is {fault}")
    if not is_real(value) or value.shape != shape or not torch.isfinite(value).all():
        raise _Fault(f"{name} is not {'x'.join(map(str, shape))} finite numbers")


def _dict(value: object, name: str) -> dict[Any, Any]:
    if type(value) is not dict:
        raise _Fault(f"{name} is {shown(value)}")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_bytes(value: object) -> bool:
    return not fault_of(value) and isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1


def _require(condition: bool, name: str, value: object) -> None:
    if not condition:
        raise _Fault(f"{name} is {shown(value)}")


def _damaged(source: str, what: str) -> InputError:
    return InputError(
        f"{source}: not a whole checkpoint ({what}); resume from another one, or start with --pretrained FILE"
    )
