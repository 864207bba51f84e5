"""From a checkpoint file to the codec it holds: its own architecture, strictly loaded, with fresh tables."""

from pathlib import Path
from typing import NamedTuple

import torch
from compressai.models import FactorizedPrior

from evaluate.config import EMBEDDED
from relic.codec.checkpoint import FORMAT, Checkpoint, load_checkpoint, read_tensors
from relic.codec.model import Architecture
from relic.codec.pretrained import EMBEDDED as EMBEDDED_FILE
from relic.codec.pretrained import load_file
from relic.codec.quantiles import refresh_tables
from relic.errors import InputError

_FLAG = "--checkpoint"


class Codec(NamedTuple):
    """A model ready to be judged."""

    checkpoint: str
    """As given on the command line."""
    label: str
    """Short and unique among the codecs of a run."""
    architecture: Architecture
    model: FactorizedPrior
    """fp32, on the CPU, in eval mode, its CDF tables made from its density just now."""


def open_codec(checkpoint: str, label: str) -> Codec:
    """Build what a file of ours or CompressAI's describes. Raises InputError naming the file."""
    path = EMBEDDED_FILE if checkpoint == EMBEDDED else Path(checkpoint)
    solve = False
    if read_tensors(path, flag=_FLAG).get("format") == FORMAT:
        described = load_checkpoint(path, flag=_FLAG)
        architecture, solve = described.architecture, entropy_was_trained(described)
        try:
            model = described.build()
        except InputError as error:
            raise InputError(f"{_FLAG} {path}: {error}") from None
    else:
        model, architecture = load_file(path, flag=_FLAG)
    model = model.float().eval()
    _refuse_not_finite(model, path)
    refresh_tables(model, solve=solve)
    return Codec(checkpoint, label, architecture, model)


def entropy_was_trained(checkpoint: Checkpoint) -> bool:
    """Whether that run trained the entropy bottleneck, whose quantiles then follow from its density."""
    return checkpoint.loss_type == "rd" and checkpoint.train_scope in ("replaced+hyper", "all")


def _refuse_not_finite(model: FactorizedPrior, path: Path) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"{_FLAG} {path}: {name} is not finite: its training diverged; take an earlier checkpoint")
