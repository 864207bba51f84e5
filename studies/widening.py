"""A GDN codec with more channels that codes as it did before training, in the manner of Net2Net (Chen et al. 2016)."""

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import medians_of, refresh_tables

_NEW_LATENTS = 0.02
"""Factor of the random weights of new latents. They round to a constant at first, so that they cost no bits."""


@torch.no_grad()
def widened(model: FactorizedPrior, channels: tuple[int, int], seed: int = 0) -> FactorizedPrior:
    """A codec of `channels` (N, M) whose first channels are those of `model`.

    The weights of new channels are random. No old channel reads a new one, so the images stay the same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = FactorizedPrior(*channels)
    for new, old in zip((*wide.g_a, *wide.g_s), (*model.g_a, *model.g_s), strict=True):
        for (name, values), kept in zip(new.named_parameters(), old.parameters(), strict=True):
            if name == "weight":
                _reads(new, values)[: _reads(new, kept).shape[0]] = 0
            values[tuple(slice(size) for size in kept.shape)] = kept
    density, cheap = model.entropy_bottleneck, _cheapest(model)
    for values, kept in zip(wide.entropy_bottleneck.parameters(), density.parameters(), strict=True):
        values.copy_(torch.cat([kept, kept[cheap].expand(channels[1] - len(kept), *kept.shape[1:])]))
    old_latents = model.g_a[-1].out_channels
    wide.g_a[-1].weight[old_latents:] *= _NEW_LATENTS
    wide.g_a[-1].bias[old_latents:] = medians_of(model).flatten()[cheap]
    refresh_tables(wide, solve=True)
    return wide


def _reads(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a convolution as (outputs, inputs, height, width)."""
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def _cheapest(model: FactorizedPrior) -> int:
    """The latent with the narrowest density."""
    bounds = model.entropy_bottleneck.quantiles[:, 0]
    return int((bounds[:, 2] - bounds[:, 0]).argmin())
