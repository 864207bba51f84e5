"""The report of a compilation: report.json and report.md."""

import dataclasses
from pathlib import Path
from typing import Any

from export.toolchains.running import CompiledPart
from relic.codec.scores import MeanScore
from relic.columns import in_columns
from relic.files import atomic_write, write_json

REPORT = "report.json"
PAGE = "report.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceComparison:
    """The device's simulator against onnxruntime, on the same crops and the same export."""

    crops: int
    crops_of: str
    equal_symbols: float
    """Share of the encoder's rounded latents."""
    largest_symbol_difference: int
    equal_pixels: float
    """Share of the decoder's 8-bit values, for the same symbols."""
    largest_pixel_difference: int
    """In 8-bit levels."""
    onnxruntime: MeanScore
    device: MeanScore
    """Both parts on the device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileReport:
    """What was compiled, for what, and how its numbers compare."""

    relic_version: str
    toolchain: str
    device: str
    precision: str
    upsample: str
    height: int
    width: int
    channels: tuple[int, int]
    parts: dict[str, CompiledPart]
    comparison: DeviceComparison

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        comparison = dataclasses.asdict(self.comparison)
        comparison |= {name: getattr(self.comparison, name)._asdict() for name in ("onnxruntime", "device")}
        parts = {part: one._asdict() for part, one in self.parts.items()}
        return {**dataclasses.asdict(self), "parts": parts, "comparison": comparison}


def write_compile_report(folder: Path, report: CompileReport) -> None:
    """Write report.json and report.md."""
    with atomic_write(folder / PAGE) as file:
        file.write(page(report).encode())
    write_json(folder / REPORT, report.values())


def compiled_table(report: CompileReport) -> str:
    """A row per part."""
    rows = [("part", "on the device", "on the host", "Mcycles", "ms", "fast memory, KiB")]
    for part, one in report.parts.items():
        cycles = "" if one.cycles is None else f"{one.cycles / 1e6:.2f}"
        milliseconds = "" if one.milliseconds is None else f"{one.milliseconds:.2f}"
        memory = "" if one.memory_bytes is None else f"{one.memory_bytes / 1024:.0f}"
        on_host = f"{one.host_operators} {', '.join(one.on_host)}".strip()
        rows.append((part, str(one.device_operators), on_host, cycles, milliseconds, memory))
    return in_columns(rows)


def quality_table(report: CompileReport) -> str:
    """PSNR, MS-SSIM and rate of onnxruntime and of the device."""
    compared = report.comparison
    rows = [(f"{compared.crops} {compared.crops_of}", "PSNR dB", "MS-SSIM", "bpp real")]
    for name, score in (("onnxruntime", compared.onnxruntime), (report.toolchain, compared.device)):
        psnr_db = "" if score.psnr_db is None else f"{score.psnr_db:.2f}"
        ms_ssim = "" if score.ms_ssim is None else f"{score.ms_ssim:.4f}"
        rows.append((name, psnr_db, ms_ssim, f"{score.bpp_real:.4f}"))
    return in_columns(rows)


def equality_line(report: CompileReport) -> str:
    """How many numbers are equal to onnxruntime's."""
    one = report.comparison
    return (
        f"{one.equal_symbols:.2%} of the symbols are equal (others by up to {one.largest_symbol_difference}); for "
        f"equal symbols {one.equal_pixels:.2%} of the pixels are (others by up to {one.largest_pixel_difference})"
    )


def page(report: CompileReport) -> str:
    """The Markdown page."""
    first = next(iter(report.parts.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    size = f"{report.width}x{report.height}, N={report.channels[0]} M={report.channels[1]}"
    files = [f"- `{file}`" for one in report.parts.values() for file in one.files]
    notes = list(dict.fromkeys(one.note for one in report.parts.values() if one.note))
    return "\n".join(
        [
            f"# {report.toolchain}: {report.device}",
            "",
            f"{versions}; {report.precision}, --upsample {report.upsample}, {size}; relic {report.relic_version}.",
            "",
            *_markdown(compiled_table(report)),
            "",
            *_markdown(quality_table(report)),
            "",
            f"{equality_line(report)}.",
            *([""] if notes else []),
            *(f"{note}." for note in notes),
            "",
            "Device files:",
            "",
            *files,
            "",
        ]
    )


def _markdown(table: str) -> list[str]:
    return ["```", *table.splitlines(), "```"]
