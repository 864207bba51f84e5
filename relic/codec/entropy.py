"""The entropy bottleneck: rounding, rate, quantiles and CDF tables.

The quantiles and CDF tables are functions of the learnt density. They are never trained, but computed before each use.
"""

import functools

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.errors import InputError

MAX_TAIL = 4096
"""Largest distance in symbols of an outer quantile from the median. Trained codecs have less than 300. Tables have an
entry per symbol, and CompressAI's function takes quadratic time in their number."""
MAX_MEDIAN = 1 << 16
_SEARCH_RADIUS, _RELATIVE, _ABSOLUTE = 1e5, 1e-4, 1e-3
"""CompressAI's: where quantiles are searched, and when two are equal."""
_MAX_HALVINGS = 64
"""28 are enough for every density."""
_DIVERGED = "it has diverged; use an earlier checkpoint, or train with a lower --lr"


def medians_of(model: FactorizedPrior) -> Tensor:
    """The median of each latent channel, (1, M, 1, 1)."""
    output: Tensor = model.entropy_bottleneck._get_medians().view(1, -1, 1, 1)
    return output


def round_about_medians(y_BMhw: Tensor, medians: Tensor) -> Tensor:
    """y_hat, the decoder's input: each value of y moved to the nearest integer distance from its channel's median.

    `medians`: (1, M, 1, 1), see `medians_of`.
    """
    return torch.round(y_BMhw - medians) + medians


def bits_per_pixel(likelihoods: Tensor, num_pixels: int) -> Tensor:
    """Estimated rate per image, (B,): the sum of -log2 of the likelihoods (B, M, h, w), divided by `num_pixels`."""
    return -torch.log2(likelihoods.float()).flatten(1).sum(1) / num_pixels


@torch.no_grad()
def solve_quantiles(bottleneck: EntropyBottleneck) -> None:
    """Set each channel's quantiles (lower tail, median, upper tail; tail mass 1e-9) by bisection on its density.

    Replaces the auxiliary loss and its optimizer of Ballé et al. 2018 (arXiv 1802.01436). Deterministic; the same steps
    as CompressAI's `_update_quantiles`, which does not end where the density is not a number. Raises InputError there.
    """
    for name, parameter in bottleneck.named_parameters():
        if name != "quantiles" and not torch.isfinite(parameter).all():
            raise InputError(f"entropy_bottleneck.{name} is not finite: {_DIVERGED}")
    for number, target in enumerate(bottleneck.target):
        bottleneck.quantiles[:, :, number] = _bisect(bottleneck, target)[:, :, 0]


def _bisect(bottleneck: EntropyBottleneck, target: Tensor) -> Tensor:
    """Where the logits of each channel's cumulative density are `target`, (M, 1, 1)."""
    high = torch.full((bottleneck.channels, 1, 1), _SEARCH_RADIUS, device=target.device)
    low = -high
    low_start = torch.where(target <= _logits(bottleneck, high), low, high)
    high = torch.where(_logits(bottleneck, low_start) <= target, high, low_start)
    low = low_start
    for _ in range(_MAX_HALVINGS):
        if torch.isclose(low, high, rtol=_RELATIVE, atol=_ABSOLUTE).all():
            return (low + high) / 2
        middle = (low + high) / 2
        found = _logits(bottleneck, middle)
        low = torch.where(found <= target, middle, low)
        high = torch.where(found >= target, middle, high)
    raise InputError(f"the entropy bottleneck's density is not a number: {_DIVERGED}")


def _logits(bottleneck: EntropyBottleneck, values: Tensor) -> Tensor:
    output: Tensor = bottleneck._logits_cumulative(values, stop_gradient=True)
    return output


@torch.no_grad()
def check_quantiles(bottleneck: EntropyBottleneck, source: str = "") -> None:
    """Raise InputError unless tables can be made: they have an entry per integer between the outer quantiles.

    The message begins with `source`.
    """
    low, median, high = bottleneck.quantiles[:, 0].float().unbind(1)
    beyond = torch.stack([median - low, high - median])
    # An auxiliary loss may leave the quantiles of a dead channel out of order by less than a symbol.
    usable = (beyond >= -1).all(0) & (beyond <= MAX_TAIL).all(0) & (median.abs() <= MAX_MEDIAN)
    if not usable.all():
        channel = int((~usable).to(torch.uint8).argmax())
        found = ", ".join(f"{value:.6g}" for value in (low[channel], median[channel], high[channel]))
        raise InputError(
            f"{source + ': ' if source else ''}entropy_bottleneck.quantiles of channel {channel} are {found}; they "
            f"must rise, within {MAX_TAIL} of the median, and the median within {MAX_MEDIAN} of 0: {_DIVERGED}"
        )


def refresh_tables(model: FactorizedPrior, *, solve: bool) -> None:
    """Compute the CDF tables from the density; with `solve`, the quantiles before them.

    Use `solve` if the entropy bottleneck was trained. A frozen one keeps its quantiles. Raises InputError if the
    density gives no tables.
    """
    if solve:
        solve_quantiles(model.entropy_bottleneck)
    check_quantiles(model.entropy_bottleneck)
    try:
        # Without force, CompressAI keeps existing tables, even if they are out of date.
        model.update(force=True)
    except (RuntimeError, ValueError) as error:  # from its compiled function, for probabilities that are no numbers
        raise InputError(f"the entropy bottleneck gives no tables ({error}): {_DIVERGED}") from error


def lighten_forward(bottleneck: EntropyBottleneck, *, rate_is_trained: bool) -> None:
    """Replace `forward` by one with the same results that takes fewer operators and does not read from the device.

    CompressAI 1.2.8 keeps the order of its dimensions in a tensor on the model's device and reads it number by number,
    so the host waits for a CUDA device twelve times per step. No parameter or module is wrapped or renamed.

    rate_is_trained: whether the loss contains the rate. Otherwise the likelihoods have no gradient. (CompressAI's lower
        bound of the likelihoods would pass a gradient of zeros through the whole density.)
    """
    bottleneck.forward = functools.partial(_forward, bottleneck, rate_is_trained)


def _forward(
    bottleneck: EntropyBottleneck, rate_is_trained: bool, x: Tensor, training: bool | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, M, h, w) -> y_hat, noisy (training) or rounded about the medians, and its likelihoods in (0, 1]."""
    noisy = bottleneck.training if training is None else training
    channels_first = x.transpose(0, 1).contiguous()
    values = channels_first.flatten(1).unsqueeze(1)
    y_hat = bottleneck.quantize(values, "noise" if noisy else "dequantize", bottleneck._get_medians())
    with torch.set_grad_enabled(rate_is_trained and torch.is_grad_enabled()):
        likelihoods = _likelihoods(bottleneck, y_hat)
    y_hat, likelihoods = (each.reshape(channels_first.shape).transpose(0, 1) for each in (y_hat, likelihoods))
    return y_hat.contiguous(), likelihoods.contiguous()


def _likelihoods(bottleneck: EntropyBottleneck, y_hat_M1L: Tensor) -> Tensor:
    """The probability of each value's interval of length 1: both ends go through the density in one call."""
    ends = torch.cat([y_hat_M1L - 0.5, y_hat_M1L + 0.5], dim=2)
    lower, upper = torch.sigmoid(bottleneck._logits_cumulative(ends, stop_gradient=False)).chunk(2, dim=2)
    likelihoods = upper - lower
    if bottleneck.use_likelihood_bound:
        likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    return likelihoods
