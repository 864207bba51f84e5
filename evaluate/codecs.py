"""A codec to judge."""

from typing import NamedTuple

from compressai.models import FactorizedPrior

from relic.codec.model import Architecture
from relic.codec.pretrained import open_codec

_FLAG = "--checkpoint"


class Codec(NamedTuple):
    """A model ready to be judged."""

    checkpoint: str
    """As given on the command line."""
    label: str
    """Short and unique among the codecs of a run."""
    architecture: Architecture
    swap_init: str | None
    """How the weights around ReLU began; None where the file does not say, or nothing was swapped."""
    model: FactorizedPrior
    """fp32, on the CPU, in eval mode, its CDF tables made from its density just now."""


def open_labelled(checkpoint: str, label: str) -> Codec:
    """Build what a file of ours or CompressAI's describes. Raises InputError naming the file."""
    opened = open_codec(checkpoint, flag=_FLAG)
    swap_init = None
    if opened.checkpoint is not None and opened.architecture.replaced != "none":
        swap_init = opened.checkpoint.swap_init
    return Codec(checkpoint, label, opened.architecture, swap_init, opened.model)
