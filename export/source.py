"""The model to export: its weights, what it is, and fresh coding tables."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compressai.models import FactorizedPrior

from export.config import EMBEDDED
from relic.bitstream.tables import Tables
from relic.codec import pretrained
from relic.codec.checkpoint import FORMAT, Checkpoint, load_checkpoint, read_tensors
from relic.codec.coding import tables_of
from relic.codec.model import Architecture
from relic.codec.quantiles import refresh_tables
from relic.errors import InputError

_FLAG = "--ckpt"


class Source(NamedTuple):
    """A model in eval mode on the CPU, its tables made from its density."""

    model: FactorizedPrior
    architecture: Architecture
    tables: Tables
    origin: dict[str, Any]
    """What export.json says of the checkpoint: plain values."""


def load_source(ckpt: str, replace_parts: str | None) -> Source:
    """Read a checkpoint of ours or CompressAI's; InputError names the file and what is wrong with it.

    The quantiles are solved where the run trained the entropy model: a checkpoint from inside an epoch holds those of
    the epoch before. Any other keeps its own.
    """
    path = pretrained.EMBEDDED if ckpt == EMBEDDED else Path(ckpt)
    content = read_tensors(path, flag=_FLAG)
    origin: dict[str, Any] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    solve = False
    if content.get("format") == FORMAT:
        checkpoint = load_checkpoint(path, flag=_FLAG)
        model, architecture = _build(checkpoint, path), checkpoint.architecture
        solve = checkpoint.loss_type == "rd" and checkpoint.train_scope in ("replaced+hyper", "all")
        origin |= _described(checkpoint)
    else:
        model, architecture = pretrained.load_file(path, flag=_FLAG)
    if replace_parts is not None and replace_parts != architecture.replaced:
        raise InputError(
            f"--replace_parts {replace_parts}: {_FLAG} {path} is {architecture.replaced}; leave --replace_parts out"
        )
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{_FLAG} {path}: {name} holds numbers that are not finite; take an earlier checkpoint")
    refresh_tables(model, solve=solve)
    return Source(model.eval(), architecture, tables_of(model), origin)


def _build(checkpoint: Checkpoint, path: Path) -> FactorizedPrior:
    try:
        return checkpoint.build()
    except InputError as error:
        raise InputError(f"{_FLAG} {path}: {error}") from None


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "swap_init": checkpoint.swap_init,
        "train_scope": checkpoint.train_scope,
        "loss_type": checkpoint.loss_type,
        "metrics": checkpoint.metrics,
        "fingerprint": checkpoint.fingerprint,
        "config": checkpoint.config,
    }


def describe_source(source: Source) -> str:
    """One line: what is exported, by what."""
    channels = "N={} M={}".format(*source.architecture.channels)
    relu = {
        "none": "GDN",
        "encoder": "ReLU encoder, GDN decoder",
        "decoder": "GDN encoder, ReLU decoder",
        "all": "ReLU",
    }
    return (
        f"{source.architecture.name} {channels}, {relu[source.architecture.replaced]}, from {source.origin['file']}; "
        f"torch {torch.__version__}"
    )
