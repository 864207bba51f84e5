"""Quantiles and CDF tables as functions of the learnt density, never trained and never stale."""

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior

from relic.errors import InputError


@torch.no_grad()
def solve_quantiles(bottleneck: EntropyBottleneck) -> None:
    """Set each channel's quantiles (lower tail, median, upper tail; tail mass 1e-9) by bisection on its density.

    Replaces the auxiliary loss and its optimizer of Balle et al. 2018 (arXiv 1802.01436). Deterministic. Raises
    InputError when a parameter is not finite, since the bisection would not end.
    """
    for name, parameter in bottleneck.named_parameters():
        if name != "quantiles" and not torch.isfinite(parameter).all():
            raise InputError(f"entropy_bottleneck.{name} is not finite: the density has diverged; lower --lr")
    bottleneck._update_quantiles()


def refresh_tables(model: FactorizedPrior, *, solve: bool) -> None:
    """Make the CDF tables anew from the density; with `solve`, the quantiles first.

    `solve` belongs to an entropy bottleneck that was trained; a frozen one keeps its own quantiles.
    """
    if solve:
        solve_quantiles(model.entropy_bottleneck)
    # Without force CompressAI leaves tables that exist as they are, however stale.
    model.update(force=True)
