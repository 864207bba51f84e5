"""Which flags a resumed run must keep, may change, or has the results of. Does not import torch."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from relic.errors import InputError
from relic.storage.urls import without_secrets
from train.config import TrainConfig

_FIXED_ON_RESUME = (
    "replace_parts",
    "train_scope",
    "epochs",
    "rounded_epochs",
    "batch_size",
    "lr",
    "loss_type",
    "distortion",
    "alpha_l1",
    "lambda_bpp",
    "optimizer",
    "weight_decay",
    "precondition",
    "qat",
    "qat_upsample",
    "qat_ranges",
    "sched",
    "lr_warmup_steps",
    "onecycle_pct_start",
    "seed",
    "shuffle_window",
)
"""A resumed run must keep these flags, so that it equals a run that was not interrupted."""
_TAKEN_OVER = ("precondition", "lr", "lr_warmup_steps")
"""Without a value, these are those of the run to resume: their defaults depend on how it began."""
_ONLY_AT_START = ("quality", "pretrained", "channels", "calib_images")
"""A resumed run has these flags' results in its checkpoint. Its records keep the values that it began with."""
_FREE_ON_RESUME = (
    "val_shards",
    "amp",
    "amp_dtype",
    "local_fp32",
    "local_fp32_custom",
    "max_grad_norm",
    "overflow_check",
    "overflow_tol",
    "compile",
    "deterministic",
)
"""A resumed run may change these flags, for example after it diverged. The log names each change."""


def check_resumed(config: TrainConfig, theirs: Mapping[str, object]) -> None:
    """Raise InputError if a flag that decides the result differs from that of the run to resume (`theirs`)."""
    mine = config.plain_values()
    # Older runs have no such flags.
    new = {"precondition": False, "qat": False, "qat_ranges": "learned", "rounded_epochs": 0}
    theirs = {**new, **theirs}
    if not theirs["qat"]:  # the form is not used, and its default was another one
        theirs["qat_upsample"] = mine["qat_upsample"]
    if theirs.get("distill"):
        raise InputError(
            f"--resume: the run to resume was trained with --distill {theirs['distill']}, which was removed; "
            "start a new run with --pretrained and another --save_dir"
        )
    for name in _FIXED_ON_RESUME:
        if name in _TAKEN_OVER and _is_open(config, name):
            continue
        if theirs.get(name) != mine[name]:
            raise InputError(
                f"--{name} {mine[name]}: the run to resume has {theirs.get(name)}; "
                "keep it, or start a new run with --pretrained and another --save_dir"
            )
    defaults = {each.name: each.default for each in fields(config)}
    for name, value in started_with(theirs).items():
        if mine[name] not in (value, defaults[name]):
            raise InputError(f"--{name} {mine[name]}: the run to resume started with {value}; leave the flag out")


def _is_open(config: TrainConfig, name: str) -> bool:
    return getattr(config, name) in (None, "auto")


def taken_over(config: TrainConfig, theirs: Mapping[str, object]) -> TrainConfig:
    """`config` with the values of the run to resume (`theirs`) where it names none."""
    mine, theirs = config.plain_values(), {"precondition": False, **theirs}
    values: dict[str, Any] = {name: theirs.get(name) for name in _TAKEN_OVER if _is_open(config, name)}
    for name, value in values.items():
        if type(value) is not type(mine[name]):
            raise InputError(f"--{name}: the run to resume has {value!r}; give the value that it was started with")
    return replace(config, **values)


def started_with(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the run to resume (`theirs`) that had their effect at its start."""
    return {name: theirs[name] for name in _ONLY_AT_START if name in theirs}


def changed_since(config: TrainConfig, theirs: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """(name, value of the run to resume, value here) of each flag that differs and may differ."""
    mine = config.plain_values()
    if isinstance(theirs.get("val_shards"), str):  # older runs stored the URL with its secrets
        theirs = {**theirs, "val_shards": without_secrets(str(theirs["val_shards"]))}
    return [(name, theirs[name], mine[name]) for name in _FREE_ON_RESUME if theirs.get(name, mine[name]) != mine[name]]
