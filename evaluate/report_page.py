"""report.html: one page that needs no network. Imports no torch."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from evaluate.plots import as_svg, rd_figure, series_of, spread_figure
from evaluate.published import PUBLISHED, PUBLISHED_SOURCE
from evaluate.report import Report, ShownImage
from evaluate.results import Evaluation, ImageResult
from evaluate.summary import Summary
from relic.files import atomic_write

_FOLDER = Path(__file__).parent / "page"


class _Column(NamedTuple):
    title: str
    numeric: bool = True


class _Cell(NamedTuple):
    text: str
    value: str
    """The value that the column is sorted by."""


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


def write_page(path: Path, report: Report) -> None:
    """Render and write atomically."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        # These two are ours. Everything else is escaped.
        css=Markup((_FOLDER / "report.css").read_text()),
        script=Markup((_FOLDER / "report.js").read_text()),
        rd_wide=_plot(rd_figure(report.curves), "rd"),
        rd_narrow=_plot(rd_figure(report.curves, narrow=True), "rd-narrow"),
        spread_wide=_plot(spread_figure(report), "spread"),
        spread_narrow=_plot(spread_figure(report, narrow=True), "spread-narrow"),
        source=", ".join(value for name, value in report.source.items() if name != "fingerprint"),
        num_images=len(report.evaluations[0].results),
        columns=_COLUMNS,
        codecs=[
            _codec(series_of(report, evaluation), evaluation, summary)
            for evaluation, summary in zip(report.evaluations, report.summaries, strict=True)
        ],
        notes=[*report.notes, *report.gaps],
        anchor=report.curves[0].name,
        bd_rates=report.bd_rows,
        rate_note=_rate_note(report),
        shown=[
            image._asdict() | {"versions": _versions(image), "is_best": image.rank.startswith("best")}
            for image in report.shown
        ],
        footer="Means of per-image values; PSNR and MS-SSIM on pixels rounded to 8 bits. Written by relic's "
        "evaluate/run.py beside metrics.json and per_image.csv, which hold every number.",
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _plot(figure: Any, salt: str) -> Markup:
    return Markup(as_svg(figure, salt))


def _codec(series: int, evaluation: Evaluation, summary: Summary) -> dict[str, Any]:
    codec = evaluation.codec
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


def _versions(image: ShownImage) -> list[dict[str, Any]]:
    return [
        {"label": version.label, "uri": version.uri, "numbers": _numbers(version.result)} for version in image.versions
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


def _rate_note(report: Report) -> str:
    coded = report.evaluations[0].results[0].bpp_real is not None
    parts = ["Rates are those of real bitstreams." if coded else "Rates are estimated: nothing was coded."]
    parts.append("MS-SSIM in decibels is -10 log10(1 - its mean).")
    if any(curve.kind == "reference" for curve in report.curves):
        parts.append("JPEG and WebP: Pillow's encoders on the same images, whole files.")
    if PUBLISHED in report.curves:
        parts.append(f"Published points: {PUBLISHED_SOURCE}, on Kodak's 24 images.")
    return " ".join(parts)
