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
    model: FactorizedPrior
    """fp32, on the CPU, in eval mode, its CDF tables made from its density just now."""


def open_labelled(checkpoint: str, label: str) -> Codec:
    """Build what a file of ours or CompressAI's describes. Raises InputError naming the file."""
    opened = open_codec(checkpoint, flag=_FLAG)
    return Codec(checkpoint, label, opened.architecture, opened.model)
