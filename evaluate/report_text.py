"""A report as text: a table for the screen, and Markdown for documents. Imports no torch."""

from typing import TYPE_CHECKING

from evaluate.report import Report
from relic.columns import in_columns, markdown_table

if TYPE_CHECKING:
    from evaluate.codecs import Codec

_HEADINGS = (
    "checkpoint", "ReLU in", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "bpp estimated", "bpp real", "images",
)  # fmt: skip


def format_table(report: Report) -> str:
    """A row per codec, then a line per note."""
    return "\n".join([in_columns(_rows(report), left=2), *report.notes])


def format_bd_rates(report: Report) -> str:
    """A line per curve that has a BD-rate against the first one; empty where none has."""
    lines = [f"{name}: {by_psnr} by PSNR, {by_ms_ssim} by MS-SSIM" for name, by_psnr, by_ms_ssim in report.bd_rows]
    return "\n".join([f"BD-rate against {report.curves[0].name}:", *lines]) if lines else ""


def format_markdown(report: Report) -> str:
    """The table, its notes and the BD-rates as Markdown."""
    text = markdown_table(_rows(report), left=2)
    text += "".join(f"\n\n{note}." for note in report.notes)
    if bd_rows := report.bd_rows:
        headings = (f"BD-rate against {report.curves[0].name}", "at equal PSNR", "at equal MS-SSIM")
        text += "\n\n" + markdown_table([headings, *bd_rows])
    return text + "\n"


def _rows(report: Report) -> list[tuple[str, ...]]:
    """The headings, then a row per codec."""
    rows = [
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
    return [_HEADINGS, *rows]


def _relu_in(codec: "Codec") -> str:
    """Where ReLU replaces GDN; how the weights around it started, where the file says it; whether INT8 was trained,
    and whether it is INT8."""
    facts = [codec.swap_init] * (codec.swap_init != "none") + ["QAT"] * codec.qat
    facts += ["INT8"] * (codec.precision == "int8")
    return codec.architecture.replaced + (f" ({', '.join(facts)})" if facts else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
