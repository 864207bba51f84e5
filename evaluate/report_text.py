"""A report as text: a table for the screen, and Markdown for documents."""

from collections.abc import Iterable

from evaluate.codecs import Codec
from evaluate.report import Report

_HEADINGS = (
    "checkpoint", "ReLU in", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "bpp estimated", "bpp real", "images",
)  # fmt: skip


def format_table(report: Report) -> str:
    """A line per codec, numbers under their headings, then what the means leave out."""
    rows = [_HEADINGS, *_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *report.notes])


def format_bd_rates(report: Report) -> str:
    """A line for each curve that has a BD-rate against the first; empty where none has."""
    lines = [f"{name}: {by_psnr} by PSNR, {by_ms_ssim} by MS-SSIM" for name, by_psnr, by_ms_ssim in report.bd_rows]
    return "\n".join([f"BD-rate against {report.curves[0].name}:", *lines]) if lines else ""


def format_markdown(report: Report) -> str:
    """The table, its notes and the BD-rates as Markdown."""
    text = _markdown([_HEADINGS, ("---",) * len(_HEADINGS), *_rows(report)])
    text += "".join(f"\n\n{note}." for note in report.notes)
    if bd_rows := report.bd_rows:
        headings = (f"BD-rate against {report.curves[0].name}", "at equal PSNR", "at equal MS-SSIM")
        text += "\n\n" + _markdown([headings, ("---",) * 3, *bd_rows])
    return text + "\n"


def _markdown(lines: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            evaluation.codec.label,
            _relu_in(evaluation.codec),
            _number(summary.psnr_db, 3),
            _number(summary.ms_ssim, 5),
            _number(summary.ms_ssim_db, 3),
            _number(summary.bpp_estimated, 4),
            _number(summary.bpp_real, 4),
            str(summary.num_images),
        )
        for evaluation, summary in zip(report.evaluations, report.summaries, strict=True)
    ]


def _relu_in(codec: Codec) -> str:
    """Where ReLU stands and, as far as the file says, how the weights around it began."""
    return codec.architecture.replaced + (f" ({codec.swap_init})" if codec.swap_init != "none" else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
