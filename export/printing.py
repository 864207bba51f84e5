"""The tables that an export prints: its parts, its nodes under a device's rules, and what INT8 costs."""

from collections import Counter
from collections.abc import Sequence

from export.devices.lint import Finding
from export.devices.rules import SEEN
from export.exporter import Exported
from export.int8.conversion import Cost
from export.onnx_files import operators
from relic.codec.scores import MeanScore
from relic.columns import in_columns


def parts_table(exported: Sequence[Exported]) -> str:
    """A row per file."""
    rows = [("part", "file", "nodes", "MB", "parity", "output range")]
    for one in exported:
        low, high = one.parity.output_range
        size = f"{one.num_bytes / 1e6:.2f}"
        nodes = str(sum(operators(one.model).values()))
        rows.append((one.part, one.file, nodes, size, f"{one.parity.error:.1e}", f"{low:.4g} to {high:.4g}"))
    return in_columns(rows, left=2)


def findings_table(target: str, findings: Sequence[Finding]) -> str:
    """A row per part and operator: how many nodes, their status, why, and which compiler or document says so."""
    groups = Counter((one.part, one.operator, one.status, one.why, _origin(one.source)) for one in findings)
    headings = ("part", "operator", "nodes", target, "rule", "source")
    rows = [(part, node, str(count), *rule) for (part, node, *rule), count in groups.items()]
    return in_columns([headings, *rows], left=len(headings))


def _origin(source: str) -> str:
    return f"{source} ({'seen' if source in SEEN else 'read'})" if source else ""


def cost_tables(cost: Cost) -> str:
    """Quality and rate before and after, then the noise of every activation."""
    rows = [(f"{cost.num_crops} val crops", "PSNR dB", "MS-SSIM", "bpp real")]
    rows += [_quality_row("float32", cost.before), _quality_row("INT8", cost.after)]
    change_db = "" if cost.psnr_loss_db is None else f"{-cost.psnr_loss_db:+.2f}"
    rows.append(("change", change_db, "", f"{cost.rate_change:+.2%}"))
    layers = [("part", "8-bit activation of", "SQNR dB")]
    layers += [(one.part, one.node, f"{one.sqnr_db:.1f}") for one in cost.noise]
    return f"{in_columns(rows)}\n\n{in_columns(layers, left=2)}"


def _quality_row(name: str, quality: MeanScore) -> tuple[str, str, str, str]:
    psnr_db = "" if quality.psnr_db is None else f"{quality.psnr_db:.2f}"
    ms_ssim = "" if quality.ms_ssim is None else f"{quality.ms_ssim:.4f}"
    return name, psnr_db, ms_ssim, f"{quality.bpp_real:.4f}"
