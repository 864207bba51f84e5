"""The results of the export benchmark as a table and a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a display
from matplotlib.figure import Figure

from benchmarks._export.timed_parts import CODECS, PARTS, PRECISIONS
from benchmarks._export.timing import THREADS, figure_name
from relic.columns import in_columns
from relic.files import atomic_write
from relic.options import Upsample

NO_KERNEL = (
    "onnxruntime has no INT8 kernel for transposed convolutions on a CPU and converts to fp32 around each, so such an "
    "INT8 decoder is not faster here; with --upsample subpixel there are none"
)
_COLOURS = {
    ("gdn", "fp32"): "#b5b5b5",
    ("gdn", "int8"): "#dcdcdc",
    ("relu", "fp32"): "#1f6f8b",
    ("relu", "int8"): "#7fb8c9",
}


def timing_table(
    figures: Mapping[str, float], quotients: Mapping[str, float], sizes: Sequence[tuple[int, int]], upsample: Upsample
) -> str:
    """Milliseconds per run: one row per part, size and number of threads."""
    kinds = [(codec, precision) for codec in CODECS for precision in PRECISIONS]
    rows = [("ms", *(f"{codec} {precision}" for codec, precision in kinds), "ReLU:GDN", "INT8:fp32")]
    for part in PARTS:
        for width, height in sizes:
            for threads in THREADS:
                where = part, f"{width}x{height}", threads
                times = [f"{figures[figure_name(*kind, *where)]:.1f}" for kind in kinds]
                faster = [
                    f"{quotients['_'.join((ratio, *where))]:.2f}x" for ratio in ("relu_over_gdn", "int8_over_fp32")
                ]
                rows.append((f"{part} {width}x{height}, threads: {threads}", *times, *faster))
    table = in_columns(rows)
    return table if upsample == "subpixel" else f"{table}\n({NO_KERNEL})"


def plot_timing(path: Path, figures: Mapping[str, float], sizes: Sequence[tuple[int, int]], title: str) -> None:
    """Draw bars of milliseconds with all threads: one panel per size, one group per part."""
    figure = Figure(figsize=(8, 1.2 + 1.7 * len(sizes)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    for axes, (width, height) in zip(panels, sizes, strict=True):
        rows = [(part, kind) for part in reversed(PARTS) for kind in reversed(_COLOURS)]
        times = [figures[figure_name(*kind, part, f"{width}x{height}", "all")] for part, kind in rows]
        gaps = [place + place // len(_COLOURS) * 0.6 for place in range(len(rows))]
        bars = axes.barh(gaps, times, color=[_COLOURS[kind] for _, kind in rows])
        axes.bar_label(bars, labels=[f"{value:,.0f}" for value in times], padding=4, fontsize=8)
        axes.set_yticks(
            gaps,
            [f"{part}, {codec.upper() if codec == 'gdn' else 'ReLU'} {precision}" for part, (codec, precision) in rows],
            fontsize=8,
        )
        axes.set_title(f"{width}x{height}, ms", loc="left", fontsize=9)
        axes.set_xlim(0, 1.12 * max(times))
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
