"""Curves of quality over rate, and the BD-rate of one curve against another. Imports no torch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from evaluate.results import Evaluation, in_decibels
from evaluate.summary import Summary
from relic.codec.bd_rate import BdRate, bd_rate

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
    """`bd_rate` of two curves, by one of METRICS."""
    return bd_rate(*([(point.bpp, getattr(point, metric)) for point in each.points] for each in (anchor, curve)))


def _family(evaluation: Evaluation) -> str:
    replaced = evaluation.codec.architecture.replaced
    names = {"none": "GDN", "encoder": "ReLU encoder", "decoder": "ReLU decoder", "all": "ReLU encoder and decoder"}
    return names[replaced] + (", ONNX" if evaluation.codec.runtime == "onnxruntime" else "")


def _point(label: str, summary: Summary) -> Point:
    bpp = summary.bpp_estimated if summary.bpp_real is None else summary.bpp_real
    return Point(label, bpp, summary.psnr_db, summary.ms_ssim)
