"""What an evaluation leaves behind: tables, metrics.json, per_image.csv, summary.md, rd.png, report.html, pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate.codecs import Codec
from evaluate.config import ORIGINALS
from evaluate.curves import METRICS, Curve, bd_rate_against
from evaluate.evaluator import Evaluation, ImageResult
from evaluate.page_pictures import ShownPicture
from evaluate.plots import rd_figure, write_png
from evaluate.report_page import bd_rows, write_page
from evaluate.summary import RateGap, Summary, rate_gap, summarise
from relic import __version__
from relic.codec.constants import MIN_MS_SSIM_SIDE
from relic.files import atomic_write, write_json

_HEADINGS = (
    "checkpoint", "ReLU in", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "bpp estimated", "bpp real", "images",
)  # fmt: skip


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """A line a checkpoint, numbers under their headings, and notes on what the means leave out."""
    summaries = [summarise(evaluation.results) for evaluation in evaluations]
    rows = [_HEADINGS, *(_row(evaluation, summary) for evaluation, summary in zip(evaluations, summaries, strict=True))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines + _notes(evaluations, summaries))


def format_markdown(evaluations: Sequence[Evaluation], curves: Sequence[Curve]) -> str:
    """The table, its notes and the BD-rates as Markdown, for documents."""
    rows = [_row(evaluation, summarise(evaluation.results)) for evaluation in evaluations]
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *rows]
    notes = _notes(evaluations, [summarise(evaluation.results) for evaluation in evaluations])
    text = "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{note}." for note in notes)])
    anchor, *others = curves
    if bd_rates := bd_rows(anchor, others):
        header = [(f"BD-rate against {anchor.name}", "at equal PSNR", "at equal MS-SSIM"), ("---",) * 3]
        text += "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in [*header, *bd_rates])
    return text + "\n"


def _row(evaluation: Evaluation, summary: Summary) -> tuple[str, ...]:
    return (
        evaluation.codec.label,
        _relu_in(evaluation.codec),
        _number(summary.psnr_db, 3),
        _number(summary.ms_ssim, 5),
        _number(summary.ms_ssim_db, 3),
        _number(summary.bpp_estimated, 4),
        _number(summary.bpp_real, 4),
        str(summary.num_images),
    )


def _relu_in(codec: Codec) -> str:
    """Where ReLU stands and, as far as the file says, how the weights around it began."""
    return codec.architecture.replaced + (f" ({codec.swap_init})" if codec.swap_init != "none" else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _notes(evaluations: Sequence[Evaluation], summaries: Sequence[Summary]) -> list[str]:
    notes = []
    if missing := summaries[0].num_without_ms_ssim:
        notes.append(f"{missing} images without MS-SSIM: a side is under {MIN_MS_SSIM_SIDE} pixels")
    for evaluation, summary in zip(evaluations, summaries, strict=True):
        if summary.num_exact:
            label = evaluation.codec.label
            notes.append(f"{label}: {summary.num_exact} exact reconstructions, left out of the means in dB")
    return notes


def gap_message(label: str, gap: RateGap) -> str:
    """Why real and estimated rates differ so much, and what helps."""
    return (
        f"{label}: {gap.real:.0f} bytes an image in fact, {gap.estimated:.0f} estimated. Usually the latents have left "
        "the density, since the entropy bottleneck was not trained with them: train with --train_scope replaced+hyper "
        "and --loss_type rd"
    )


def wide_gaps(evaluations: Sequence[Evaluation]) -> list[str]:
    """A message for each checkpoint whose real and estimated rates differ by more than 1 % + 8 bytes an image."""
    gaps = ((evaluation.codec.label, rate_gap(evaluation.results)) for evaluation in evaluations)
    return [gap_message(label, gap) for label, gap in gaps if gap is not None and gap.is_wide]


def format_bd_rates(curves: Sequence[Curve]) -> str:
    """A line for each curve that has a BD-rate against the first; empty where none has."""
    anchor, *others = curves
    rows = bd_rows(anchor, others)
    lines = [f"{name}: {by_psnr} by PSNR, {by_ms_ssim} by MS-SSIM" for name, by_psnr, by_ms_ssim in rows]
    return "\n".join([f"BD-rate against {anchor.name}:", *lines]) if lines else ""


def write_report(
    folder: Path,
    evaluations: Sequence[Evaluation],
    curves: Sequence[Curve],
    shown: Sequence[ShownPicture],
    source: dict[str, str],
) -> None:
    """Write everything, each file whole or not at all, metrics.json last. `source` says what the images were."""
    for evaluation in evaluations:
        _write_pictures(folder / evaluation.codec.label, evaluation.reconstructions)
    _write_pictures(folder / ORIGINALS, evaluations[0].originals)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "per_image.csv", "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("checkpoint", *ImageResult._fields))
        for evaluation in evaluations:
            rows.writerows((evaluation.codec.checkpoint, *result) for result in evaluation.results)
    write_png(rd_figure(curves), folder / "rd.png")
    with atomic_write(folder / "summary.md", "w") as file:
        file.write(format_markdown(evaluations, curves))
    notes = _notes(evaluations, [summarise(evaluation.results) for evaluation in evaluations]) + wide_gaps(evaluations)
    images = ", ".join(value for name, value in source.items() if name != "fingerprint")
    write_page(folder / "report.html", evaluations, curves, shown, images, notes)
    summary = [_describe(evaluation, source) for evaluation in evaluations]
    metrics = {"relic_version": __version__, "summary": summary, "curves": _describe_curves(curves)}
    write_json(folder / "metrics.json", metrics)


def _describe_curves(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    described = []
    for curve in curves:
        bd_rates = {
            f"bd_rate_{metric.removesuffix('_db')}": found and found._asdict()
            for metric in METRICS
            for found in [bd_rate_against(curves[0], curve, metric)]
        }
        points = [point._asdict() for point in curve.points]
        described.append({"name": curve.name, "kind": curve.kind, **bd_rates, "points": points})
    return described


def _describe(evaluation: Evaluation, source: dict[str, str]) -> dict[str, Any]:
    codec = evaluation.codec
    return {
        "checkpoint": codec.checkpoint,
        "label": codec.label,
        "runtime": codec.runtime,
        "architecture": codec.architecture.name,
        "channels": list(codec.architecture.channels),
        "replaced": codec.architecture.replaced,
        "swap_init": codec.swap_init,
        "relu_clipped": evaluation.relu_clipped,
        **summarise(evaluation.results)._asdict(),
        **source,
    }


def _write_pictures(folder: Path, pictures: dict[int, bytes]) -> None:
    for number, png in pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{number:03d}.png") as file:
            file.write(png)
