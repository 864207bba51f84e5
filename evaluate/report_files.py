"""Write the folder of an evaluation: metrics.json, per_image.csv, summary.md, rd.png, report.html, images."""

import csv
from pathlib import Path
from typing import Any

from evaluate.config import ORIGINALS
from evaluate.plots import rd_figure, write_png
from evaluate.report import Report
from evaluate.report_page import write_page
from evaluate.report_text import format_markdown
from evaluate.results import Evaluation, ImageResult
from evaluate.summary import Summary
from relic import __version__
from relic.files import atomic_write, write_json


def write_report(folder: Path, report: Report) -> None:
    """Write all files, metrics.json last. Each file is written whole or not at all."""
    for evaluation in report.evaluations:
        _write_images(folder / evaluation.codec.label, evaluation.reconstructions)
    _write_images(folder / ORIGINALS, report.evaluations[0].originals)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "per_image.csv", "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("checkpoint", *ImageResult._fields))
        for evaluation in report.evaluations:
            rows.writerows((evaluation.codec.checkpoint, *result) for result in evaluation.results)
    write_png(rd_figure(report.curves), folder / "rd.png")
    with atomic_write(folder / "summary.md", "w") as file:
        file.write(format_markdown(report))
    write_page(folder / "report.html", report)
    summary = [
        _describe(evaluation, means, report.source)
        for evaluation, means in zip(report.evaluations, report.summaries, strict=True)
    ]
    write_json(
        folder / "metrics.json",
        {"relic_version": __version__, "summary": summary, "curves": _describe_curves(report)},
    )


def _describe_curves(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "name": curve.name,
            "kind": curve.kind,
            "bd_rate_psnr": found.psnr_db and found.psnr_db._asdict(),
            "bd_rate_ms_ssim": found.ms_ssim_db and found.ms_ssim_db._asdict(),
            "points": [point._asdict() for point in curve.points],
        }
        for curve, found in zip(report.curves, report.bd_rates, strict=True)
    ]


def _describe(evaluation: Evaluation, summary: Summary, source: dict[str, str]) -> dict[str, Any]:
    codec = evaluation.codec
    return {
        "checkpoint": codec.checkpoint,
        "label": codec.label,
        "runtime": codec.runtime,
        "architecture": codec.architecture.name,
        "channels": list(codec.architecture.channels),
        "replaced": codec.architecture.replaced,
        "swap_init": codec.swap_init,
        "qat": codec.qat,
        "precision": codec.precision,
        "rdoq": evaluation.rdoq._asdict(),
        "relu_clipped": evaluation.relu_below_zero,
        **summary._asdict(),
        **source,
    }


def _write_images(folder: Path, images: dict[int, bytes]) -> None:
    for number, png in images.items():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{number:03d}.png") as file:
            file.write(png)
