"""Curves of quality over rate, and the BD-rate of one curve against another. Imports no torch."""

import math
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import matplotlib
import numpy as np

from evaluate.results import Evaluation, in_decibels
from evaluate.summary import Summary

matplotlib.use("Agg")  # bjontegaard imports pyplot, which otherwise looks for a screen
from bjontegaard import bd_rate

MIN_RATES = 4
"""Bjontegaard's method needs four points or more per curve."""

Metric = Literal["psnr_db", "ms_ssim_db"]
METRICS: tuple[Metric, ...] = ("psnr_db", "ms_ssim_db")


class Point(NamedTuple):
    """Means over the images."""

    name: str
    bpp: float
    """Of real bytes. Of the estimate where nothing was coded."""
    psnr_db: float | None
    ms_ssim: float | None

    @property
    def ms_ssim_db(self) -> float | None:
        """-10 log10(1 - mean MS-SSIM): published points give no mean of decibels, which would be another number."""
        return None if self.ms_ssim is None else in_decibels(self.ms_ssim)


class Curve(NamedTuple):
    """The points of one family of codecs, by rising rate."""

    name: str
    kind: Literal["codec", "reference", "published"]
    points: tuple[Point, ...]


class BdRate(NamedTuple):
    """How much rate a curve needs at equal quality, compared with the anchor."""

    percent: float
    """Positive: more rate than the anchor. Averaged over the qualities that both curves reach."""
    overlap: float
    """These qualities as a share (0 to 1) of those that either curve reaches. If small, do not trust `percent`."""


def gather_curves(
    evaluations: Sequence[Evaluation], summaries: Sequence[Summary], names: Sequence[str] | None
) -> list[Curve]:
    """One curve per name, in the order of their first codec. `names` has one name per evaluation.

    Without `names` there is one curve per swap and runtime.
    """
    chosen = names or [_family(evaluation) for evaluation in evaluations]
    points: dict[str, list[Point]] = {}
    for name, evaluation, summary in zip(chosen, evaluations, summaries, strict=True):
        points.setdefault(name, []).append(_point(evaluation.codec.label, summary))
    return [Curve(name, "codec", by_rate(found)) for name, found in points.items()]


def by_rate(points: Sequence[Point]) -> tuple[Point, ...]:
    """Sorted by rising rate."""
    return tuple(sorted(points, key=lambda point: point.bpp))


def bd_rate_against(anchor: Curve, curve: Curve, metric: Metric) -> BdRate | None:
    """Bjontegaard delta rate (Akima interpolation of log rate over quality; ITU-T VCEG-M33 is the method's origin).

    None where a curve has fewer than four rates, does not rise or holds a value that is not finite, or where the curves
    have no quality in common.
    """
    rates, qualities = [], []
    for each in (anchor, curve):
        found = [(point.bpp, getattr(point, metric)) for point in each.points]
        values = np.array([quality for rate, quality in found if _is_finite(rate) and _is_finite(quality)])
        if len(values) < max(MIN_RATES, len(found)) or (np.diff(values) <= 0).any():
            return None
        rates.append([rate for rate, _ in found])
        qualities.append(values)
    lows, highs = zip(*((values[0], values[-1]) for values in qualities), strict=True)
    overlap = (min(highs) - max(lows)) / (max(highs) - min(lows))
    if overlap <= 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of small overlaps; we print the overlap
        percent = bd_rate(
            rates[0], qualities[0], rates[1], qualities[1], method="akima", require_matching_points=False, min_overlap=0
        )
    return BdRate(float(percent), float(overlap))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _family(evaluation: Evaluation) -> str:
    replaced = evaluation.codec.architecture.replaced
    names = {"none": "GDN", "encoder": "ReLU encoder", "decoder": "ReLU decoder", "all": "ReLU encoder and decoder"}
    return names[replaced] + (", ONNX" if evaluation.codec.runtime == "onnxruntime" else "")


def _point(label: str, summary: Summary) -> Point:
    bpp = summary.bpp_estimated if summary.bpp_real is None else summary.bpp_real
    return Point(label, bpp, summary.psnr_db, summary.ms_ssim)
