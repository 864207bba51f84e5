"""The entropy bottleneck: rounding, rate, and what follows from its density.

Quantiles and CDF tables are functions of the learnt density: never trained, and computed before each use.
"""

import functools

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.errors import InputError


def medians_of(model: FactorizedPrior) -> Tensor:
    """Each latent channel's median, (1, M, 1, 1)."""
    output: Tensor = model.entropy_bottleneck._get_medians().view(1, -1, 1, 1)
    return output


def round_about_medians(y_BMhw: Tensor, medians: Tensor) -> Tensor:
    """The latent y_hat that a decoder gets: each value a whole number of steps from its channel's median."""
    return torch.round(y_BMhw - medians) + medians


def bits_per_pixel(likelihoods: Tensor, num_pixels: int) -> Tensor:
    """Estimated rate per image, (B,): -log2 of the likelihoods (B, M, h, w) summed, over `num_pixels`."""
    return -torch.log2(likelihoods.float()).flatten(1).sum(1) / num_pixels


@torch.no_grad()
def solve_quantiles(bottleneck: EntropyBottleneck) -> None:
    """Set each channel's quantiles (lower tail, median, upper tail; tail mass 1e-9) by bisection on its density.

    Replaces the auxiliary loss and its optimizer of Balle et al. 2018 (arXiv 1802.01436). Deterministic. Raises
    InputError when a parameter is not finite: the bisection would not end.
    """
    for name, parameter in bottleneck.named_parameters():
        if name != "quantiles" and not torch.isfinite(parameter).all():
            raise InputError(f"entropy_bottleneck.{name} is not finite: the density has diverged; lower --lr")
    bottleneck._update_quantiles()


def refresh_tables(model: FactorizedPrior, *, solve: bool) -> None:
    """Compute the CDF tables from the density; with `solve`, the quantiles before them.

    `solve` is for an entropy bottleneck that was trained. A frozen one keeps its own quantiles.
    """
    if solve:
        solve_quantiles(model.entropy_bottleneck)
    # Without force CompressAI keeps tables that exist, even stale ones.
    model.update(force=True)


def avoid_device_reads(bottleneck: EntropyBottleneck) -> None:
    """Replace `forward` by one that computes the same, bit for bit, without reading from the device.

    CompressAI 1.2.8 keeps the order of its dimensions in a tensor on the model's device. It reads that number by
    number, and a CUDA device waits twelve times per step. No parameter or module is wrapped or renamed.
    """
    bottleneck.forward = functools.partial(_forward, bottleneck)


def _forward(bottleneck: EntropyBottleneck, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
    """(B, M, h, w) -> the same, noisy (training) or rounded about the medians, and its likelihoods in (0, 1]."""
    noisy = bottleneck.training if training is None else training
    channels_first = x.transpose(0, 1).contiguous()
    values = channels_first.flatten(1).unsqueeze(1)
    y_hat = bottleneck.quantize(values, "noise" if noisy else "dequantize", bottleneck._get_medians())
    likelihoods = bottleneck._likelihood(y_hat)[0]
    if bottleneck.use_likelihood_bound:
        likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    y_hat, likelihoods = (each.reshape(channels_first.shape).transpose(0, 1) for each in (y_hat, likelihoods))
    return y_hat.contiguous(), likelihoods.contiguous()
