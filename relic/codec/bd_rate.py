"""The BD-rate: how much rate one codec needs at another's quality. Imports no torch."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_FEWEST_RATES = 4
"""Bjontegaard's method needs four points or more per curve."""

RatePoint = tuple[float, float | None]
"""Rate in bits per pixel, and quality in dB."""


class BdRate(NamedTuple):
    """How much rate a curve needs at equal quality, compared with the anchor."""

    percent: float
    """Positive: more rate than the anchor. Averaged over the qualities that both curves reach."""
    overlap: float
    """These qualities as a share (0 to 1) of those that either curve reaches. If small, do not trust `percent`."""


def bd_rate(anchor: Sequence[RatePoint], curve: Sequence[RatePoint]) -> BdRate | None:
    """Bjontegaard delta rate (Akima interpolation of log rate over quality; ITU-T VCEG-M33 is the method's origin).

    None where a curve has fewer than four rates, holds a value that is not finite, does not rise with the rate, or
    where the curves have no quality in common.
    """
    rates, qualities = [], []
    for points in (anchor, curve):
        found = [(rate, quality) for rate, quality in points if quality is not None and math.isfinite(rate + quality)]
        if len(found) < max(_FEWEST_RATES, len(points)):
            return None
        found.sort()
        rates.append([rate for rate, _ in found])
        qualities.append(np.array([quality for _, quality in found]))
        if (np.diff(qualities[-1]) <= 0).any():
            return None
    lows, highs = zip(*((values[0], values[-1]) for values in qualities), strict=True)
    overlap = (min(highs) - max(lows)) / (max(highs) - min(lows))
    if overlap <= 0:
        return None
    import matplotlib  # here, not above: with pyplot and scipy it takes a second

    matplotlib.use("Agg")  # bjontegaard imports pyplot, which otherwise looks for a screen
    import bjontegaard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of small overlaps; the overlap is returned
        percent = bjontegaard.bd_rate(
            rates[0], qualities[0], rates[1], qualities[1], method="akima", require_matching_points=False, min_overlap=0
        )
    return BdRate(float(percent), float(overlap))
