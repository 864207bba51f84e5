"""The entropy bottleneck: rounding, rate, quantiles and CDF tables.

The quantiles and CDF tables are functions of the learnt density. They are never trained, but computed before each use.
"""

import functools

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.errors import InputError


def medians_of(model: FactorizedPrior) -> Tensor:
    """The median of each latent channel, (1, M, 1, 1)."""
    output: Tensor = model.entropy_bottleneck._get_medians().view(1, -1, 1, 1)
    return output


def round_about_medians(y_BMhw: Tensor, medians: Tensor) -> Tensor:
    """y_hat, the decoder's input: each value of y moved to the nearest integer distance from its channel's median."""
    return torch.round(y_BMhw - medians) + medians


def bits_per_pixel(likelihoods: Tensor, num_pixels: int) -> Tensor:
    """Estimated rate per image, (B,): the sum of -log2 of the likelihoods (B, M, h, w), divided by `num_pixels`."""
    return -torch.log2(likelihoods.float()).flatten(1).sum(1) / num_pixels


@torch.no_grad()
def solve_quantiles(bottleneck: EntropyBottleneck) -> None:
    """Set each channel's quantiles (lower tail, median, upper tail; tail mass 1e-9) by bisection on its density.

    Replaces the auxiliary loss and its optimizer of Ballé et al. 2018 (arXiv 1802.01436). Deterministic. Raises
    InputError if a parameter is not finite, since the bisection would not end.
    """
    for name, parameter in bottleneck.named_parameters():
        if name != "quantiles" and not torch.isfinite(parameter).all():
            raise InputError(f"entropy_bottleneck.{name} is not finite: the density has diverged; lower --lr")
    bottleneck._update_quantiles()


def refresh_tables(model: FactorizedPrior, *, solve: bool) -> None:
    """Compute the CDF tables from the density; with `solve`, the quantiles before them.

    Use `solve` if the entropy bottleneck was trained. A frozen one keeps its quantiles.
    """
    if solve:
        solve_quantiles(model.entropy_bottleneck)
    # Without force, CompressAI keeps existing tables, even if they are out of date.
    model.update(force=True)


def avoid_device_reads(bottleneck: EntropyBottleneck) -> None:
    """Replace `forward` by one with the same results, bit for bit, that does not read from the device.

    CompressAI 1.2.8 keeps the order of its dimensions in a tensor on the model's device and reads it number by number,
    so the host waits for a CUDA device twelve times per step. No parameter or module is wrapped or renamed.
    """
    bottleneck.forward = functools.partial(_forward, bottleneck)


def _forward(bottleneck: EntropyBottleneck, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
    """y (B, M, h, w) -> y_hat, noisy (training) or rounded about the medians, and its likelihoods in (0, 1]."""
    noisy = bottleneck.training if training is None else training
    channels_first = x.transpose(0, 1).contiguous()
    values = channels_first.flatten(1).unsqueeze(1)
    y_hat = bottleneck.quantize(values, "noise" if noisy else "dequantize", bottleneck._get_medians())
    likelihoods = bottleneck._likelihood(y_hat)[0]
    if bottleneck.use_likelihood_bound:
        likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    y_hat, likelihoods = (each.reshape(channels_first.shape).transpose(0, 1) for each in (y_hat, likelihoods))
    return y_hat.contiguous(), likelihoods.contiguous()
