"""The embedded GDN codec at another rate, without training."""

from pathlib import Path

import torch
from compressai.models import FactorizedPrior

from relic.codec.constants import EMBEDDED
from relic.codec.entropy import refresh_tables
from relic.codec.pretrained import codec_path, read_codec
from relic.files import atomic_write
from studies.widening import widened


def save_scaled(scale: float, channels: tuple[int, int] | None, path: Path) -> None:
    """Write the state dict of `scaled`, with more channels if given, as CompressAI does."""
    model = scaled(scale)
    if channels:
        model = widened(model, channels)
    with atomic_write(path) as file:
        torch.save(model.state_dict(), file)


@torch.no_grad()
def scaled(scale: float) -> FactorizedPrior:
    """The embedded GDN codec with its latents multiplied by `scale`: the last layer of g_a, the first one of g_s and
    the density change, the images do not (apart from rounding)."""
    model = read_codec(codec_path(EMBEDDED), flag="--pretrained").build()
    last, first = model.g_a[-1], model.g_s[0]
    last.weight *= scale
    last.bias *= scale
    first.weight /= scale
    matrix = model.entropy_bottleneck.matrices[0]
    # The density takes softplus(matrix) times the latent.
    matrix.copy_(torch.log(torch.expm1(torch.nn.functional.softplus(matrix.double()) / scale)))
    refresh_tables(model, solve=True)
    return model
