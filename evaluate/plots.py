"""The plots of a report: quality over rate, and a histogram of the images' quality. Imports no torch."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluate.curves import METRICS, Curve, Metric
from evaluate.report import Report
from evaluate.results import Evaluation
from relic.files import atomic_write

_SERIES = ("#1f6f8b", "#c2571a", "#5b7f2b", "#8a4f9e", "#b03a5b", "#8a6d1d")
_REFERENCES = ("#8b8b8b", "#a9a9a9")
_INK, _FAINT = "#222222", "#dddddd"
_TITLES: dict[Metric, str] = {"psnr_db": "PSNR, dB", "ms_ssim_db": "MS-SSIM, dB"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def series_of(report: Report, evaluation: Evaluation) -> int:
    """The number of the codec's colour: everywhere a codec has the colour of its curve."""
    return report.curve_of(evaluation) % len(_SERIES)


def rd_figure(curves: Sequence[Curve], *, narrow: bool = False) -> Figure:
    """Quality over rate: a panel for PSNR and, if any image has it, one for MS-SSIM. `narrow` is for phones."""
    reached = [point for curve in curves if curve.kind == "codec" for point in curve.points]
    metrics = [metric for metric in METRICS if any(getattr(point, metric) is not None for point in reached)]
    count = max(1, len(metrics))
    size = (3.7, 0.9 + 2.9 * count) if narrow else (4.6 * count, 4.0)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(count if narrow else 1, 1 if narrow else count, squeeze=False).ravel()
        for axes, metric in zip(panels, metrics, strict=False):
            _draw_panel(axes, curves, metric)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1 if narrow else 2, fontsize=8.5)
    return figure


def _draw_panel(axes: Axes, curves: Sequence[Curve], metric: Metric) -> None:
    codecs = references = 0
    style: dict[str, Any]
    shown: list[tuple[float, float]] = []
    limit = _widest_rate(curves)
    for curve in curves:
        points = [
            (point.bpp, quality)
            for point in curve.points
            if (quality := getattr(point, metric)) is not None and math.isfinite(quality) and math.isfinite(point.bpp)
        ]
        if curve.kind == "codec":
            colour, style = (
                _SERIES[codecs % len(_SERIES)],
                {"marker": "o", "markersize": 5, "linewidth": 1.6, "zorder": 3},
            )
            codecs += 1
        elif curve.kind == "published":
            colour, style = _INK, {"marker": "o", "markersize": 4, "markerfacecolor": "none", "linewidth": 0.9}
        else:
            colour = _REFERENCES[references % len(_REFERENCES)]
            style = {"linestyle": ("-", (0, (4, 2)))[references % 2], "linewidth": 1.2}
            references += 1
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, label=_literal(curve.name), **style)
        shown += [point for point in points if point[0] <= limit]
    axes.set_xlim(0, limit)
    if shown:
        low, high = min(quality for _, quality in shown), max(quality for _, quality in shown)
        margin = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("bits per pixel")
    axes.set_title(_TITLES[metric], loc="left", fontsize=9)
    axes.grid(True)


def _widest_rate(curves: Sequence[Curve]) -> float:
    """The largest rate of the plot, by the codecs: reference curves go far beyond them and are cut."""
    rates = [point.bpp for curve in curves if curve.kind == "codec" for point in curve.points]
    widest = max(filter(math.isfinite, rates), default=1.0)
    return max(0.6, 1.5 * widest)


def spread_figure(report: Report, *, narrow: bool = False) -> Figure:
    """A histogram of the images' PSNR per codec. All have the same scale; the median is marked."""
    values = [
        np.array([result.psnr_db for result in evaluation.results if math.isfinite(result.psnr_db)])
        for evaluation in report.evaluations
    ]
    every = np.concatenate(values)
    bins = np.histogram_bin_edges(every if len(every) else np.zeros(1), bins=30)
    with matplotlib.rc_context(_STYLE):
        size = (3.7 if narrow else 9.2, 0.7 + 0.95 * len(report.evaluations))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(report.evaluations), 1, sharex=True, squeeze=False).ravel()
        for axes, evaluation, found in zip(panels, report.evaluations, values, strict=True):
            axes.hist(found, bins=bins, color=_SERIES[series_of(report, evaluation)], rwidth=0.9)
            axes.set_title(_literal(evaluation.codec.label), loc="left", fontsize=9)
            axes.spines["left"].set_visible(False)
            axes.set_yticks([])
            if len(found):
                axes.axvline(float(np.median(found)), color=_INK, linewidth=1, linestyle=(0, (3, 2)))
        panels[-1].set_xlabel("PSNR of an image, dB (dashed: the median)")
    return figure


def _literal(name: str) -> str:
    """A name for matplotlib, which reads text between two dollar signs as mathematics."""
    return name.replace("$", r"\$")


def as_svg(figure: Figure, salt: str) -> str:
    """An <svg> element whose colours are variables of the page: --ink, --grid, --reference and --series-N.

    Figures on one page need different values of `salt`, which makes their identifiers differ. Equal figures give equal
    text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for number, colour in enumerate(_SERIES, start=1):
        text = text.replace(colour, f"var(--series-{number})")
    for colour, name in ((_INK, "ink"), (_FAINT, "grid"), (_REFERENCES[0], "reference"), (_REFERENCES[1], "reference")):
        text = text.replace(colour, f"var(--{name})")
    return text


def write_png(figure: Figure, path: Path) -> None:
    """Write a PNG file atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
