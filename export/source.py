"""The model to export: its weights, its architecture, and new coding tables."""

import hashlib
from typing import Any, NamedTuple

import torch
from compressai.models import FactorizedPrior

from relic.bitstream.tables import Tables
from relic.codec.checkpoint import Checkpoint
from relic.codec.coding import tables_of
from relic.codec.entropy import medians_of
from relic.codec.model import Architecture
from relic.codec.pretrained import codec_path, finished_model, read_codec
from relic.errors import InputError
from relic.storage.remote_file import local_name

_FLAG = "--ckpt"


class ExportSource(NamedTuple):
    """A model in eval mode on the CPU. Its tables are made from its density."""

    model: FactorizedPrior
    architecture: Architecture
    tables: Tables
    origin: dict[str, Any]
    """What export.json says about the checkpoint: plain values."""
    quantization: dict[str, Any] | None = None
    """Of a checkpoint of --qat, see `Checkpoint.quantization`."""


def load_source(ckpt: str, replace_parts: str | None, *, contexts: bool = True) -> ExportSource:
    """Read a checkpoint of relic or a state dict of CompressAI, with its contexts or without.

    Raises InputError naming the file.
    """
    path = codec_path(local_name(ckpt))
    sha256 = hashlib.sha256()
    checkpoint = read_codec(path, flag=_FLAG, digest=sha256)
    model = finished_model(checkpoint, f"{_FLAG} {path}")
    found = checkpoint.architecture.replaced
    if replace_parts is not None and replace_parts != found:
        raise InputError(f"--replace_parts {replace_parts}: {path} is {found}; leave it out")
    origin = {
        "file": path.name,
        "sha256": sha256.hexdigest(),
        "decoder_sha256": decoder_digest(model),
        **_described(checkpoint),
    }
    tables = tables_of(model, checkpoint.contexts if contexts else None)
    return ExportSource(model, checkpoint.architecture, tables, origin, checkpoint.quantization)


def decoder_digest(model: FactorizedPrior) -> str:
    """SHA-256 (hex) of what turns symbols into pixels: the names, shapes and float32 values of g_s, and the medians.

    A stream names only the tables it was written with. Codecs that were fine-tuned with --loss_type recon from one
    start have the same tables and different decoders. This number tells them apart, whatever --upsample and --int8 are.
    """
    sha = hashlib.sha256()
    for name, tensor in (*model.g_s.named_parameters(prefix="g_s"), ("medians", medians_of(model))):
        sha.update(f"{name} {'x'.join(map(str, tensor.shape))}\n".encode())
        sha.update(tensor.detach().numpy().astype("<f4").tobytes())
    return sha.hexdigest()


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "swap_init": checkpoint.swap_init,
        "train_scope": checkpoint.train_scope,
        "loss_type": checkpoint.loss_type,
        "metrics": checkpoint.metrics,
        "fingerprint": checkpoint.fingerprint,
        "quantization": checkpoint.quantization,
        "config": checkpoint.config,
    }


def describe_source(source: ExportSource) -> str:
    """One line: the model, its file, and the version of torch."""
    channels = "N={} M={}".format(*source.architecture.channels)
    relu = {
        "none": "GDN",
        "encoder": "ReLU encoder, GDN decoder",
        "decoder": "GDN encoder, ReLU decoder",
        "all": "ReLU",
    }
    began = ""
    if source.architecture.replaced != "none":
        began = f" ({source.origin['swap_init']} swap)"
    if source.quantization is not None:
        began += ", trained with --qat"
    what = f"{source.architecture.name} {channels}, {relu[source.architecture.replaced]}{began}"
    return f"{what}, from {source.origin['file']}; torch {torch.__version__}"
