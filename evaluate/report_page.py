"""report.html: one page that needs no network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from evaluate.curves import METRICS, Curve, bd_rate_against
from evaluate.evaluator import Evaluation, ImageResult
from evaluate.page_pictures import ShownPicture
from evaluate.plots import as_svg, rd_figure, series_of, spread_figure
from evaluate.published import PUBLISHED, SOURCE
from evaluate.summary import summarise
from relic.files import atomic_write

_FOLDER = Path(__file__).parent / "page"


class _Column(NamedTuple):
    title: str
    numeric: bool = True


class _Cell(NamedTuple):
    text: str
    value: str
    """What the column sorts by."""


_COLUMNS = (
    _Column("codec", numeric=False),
    _Column("PSNR dB"),
    _Column("MS-SSIM"),
    _Column("MS-SSIM dB"),
    _Column("bpp"),
    _Column("bpp estimated"),
    _Column("file bytes"),
    _Column("encode ms"),
    _Column("decode ms"),
    _Column("ReLU in", numeric=False),
)


def write_page(
    path: Path,
    evaluations: Sequence[Evaluation],
    curves: Sequence[Curve],
    pictures: Sequence[ShownPicture],
    source: str,
    notes: Sequence[str],
) -> None:
    """Render and write atomically. `curves`: the codecs' first, then references; `notes`: lines under the summary."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    anchor, *others = curves
    page = environment.get_template("report.html.j2").render(
        # These are ours; everything else is escaped.
        css=Markup((_FOLDER / "report.css").read_text()),
        script=Markup((_FOLDER / "report.js").read_text()),
        rd_wide=_plot(rd_figure(curves), "rd"),
        rd_narrow=_plot(rd_figure(curves, narrow=True), "rd-narrow"),
        spread_wide=_plot(spread_figure(evaluations, curves), "spread"),
        spread_narrow=_plot(spread_figure(evaluations, curves, narrow=True), "spread-narrow"),
        source=source,
        num_images=len(evaluations[0].results),
        columns=_COLUMNS,
        codecs=[_codec(series_of(evaluation, curves), evaluation) for evaluation in evaluations],
        notes=notes,
        anchor=anchor.name,
        bd_rates=bd_rows(anchor, others),
        rate_note=_rate_note(evaluations, curves),
        shown=[
            picture._asdict() | {"versions": _versions(picture), "is_best": picture.rank.startswith("best")}
            for picture in pictures
        ],
        footer="Means of per-image values; PSNR and MS-SSIM on pixels rounded to 8 bits. Written by relic's "
        "evaluate/run.py beside metrics.json and per_image.csv, which hold every number.",
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def bd_rows(anchor: Curve, others: Sequence[Curve]) -> list[tuple[str, ...]]:
    """Name, BD-rate at equal PSNR and at equal MS-SSIM of each curve that has one against `anchor`."""
    rows = []
    for curve in others:
        found = [bd_rate_against(anchor, curve, metric) for metric in METRICS]
        if any(found):
            texts = (f"{bd.percent:+.1f} % (overlap {bd.overlap:.0%})" if bd else "-" for bd in found)
            rows.append((curve.name, *texts))
    return rows


def _plot(figure: Any, salt: str) -> Markup:
    return Markup(as_svg(figure, salt))


def _codec(series: int, evaluation: Evaluation) -> dict[str, Any]:
    codec, summary = evaluation.codec, summarise(evaluation.results)
    cells = [
        _Cell(codec.label, codec.label),
        _number(summary.psnr_db, 2),
        _number(summary.ms_ssim, 4),
        _number(summary.ms_ssim_db, 2),
        _number(summary.bpp_real, 4),
        _number(summary.bpp_estimated, 4),
        _number(summary.file_bytes, 0),
        _number(summary.encode_ms, 1),
        _number(summary.decode_ms, 1),
        _Cell(codec.architecture.replaced, codec.architecture.replaced),
    ]
    return {"cells": cells, "series": series + 1}


def _number(value: float | None, digits: int) -> _Cell:
    return _Cell("–", "") if value is None else _Cell(f"{value:,.{digits}f}", repr(value))


def _versions(picture: ShownPicture) -> list[dict[str, Any]]:
    return [
        {"label": version.label, "uri": version.uri, "numbers": _numbers(version.result)}
        for version in picture.versions
    ]


def _numbers(result: ImageResult) -> list[tuple[str, str]]:
    numbers = [("PSNR", "exact" if result.psnr_db == math.inf else f"{result.psnr_db:.2f} dB")]
    if result.ms_ssim is not None:
        numbers.append(("MS-SSIM", f"{result.ms_ssim:.4f}"))
    if result.bpp_real is not None:
        numbers += [("rate", f"{result.bpp_real:.3f} bpp"), ("file", f"{result.file_bytes:,} bytes")]
    else:
        numbers.append(("estimated rate", f"{result.bpp_estimated:.3f} bpp"))
    return [*numbers, ("size", f"{result.width}x{result.height}")]


def _rate_note(evaluations: Sequence[Evaluation], curves: Sequence[Curve]) -> str:
    coded = evaluations[0].results[0].bpp_real is not None
    parts = ["Rates are those of real bitstreams." if coded else "Rates are estimated: nothing was coded."]
    parts.append("MS-SSIM in decibels is -10 log10(1 - its mean).")
    if any(curve.kind == "reference" for curve in curves):
        parts.append("JPEG and WebP: Pillow's encoders on the same images, whole files.")
    if PUBLISHED in curves:
        parts.append(f"Published points: {SOURCE}, on Kodak's 24 images.")
    return " ".join(parts)
