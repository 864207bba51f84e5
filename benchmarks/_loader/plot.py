"""The comparison of loaders as a chart."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a display
from matplotlib.figure import Figure

from relic.files import atomic_write

_PANELS = {
    "raw crops": ("copy_ceiling", "read_ceiling", "relic_raw", "webdataset_npy"),
    "encoded crops": (
        "decode_ceiling",
        "relic_jpg",
        "webdataset_jpg",
        "torch_folder",
        "decode_ceiling_png",
        "relic_png",
    ),
}
_OURS, _CEILING, _OTHERS = "#1f6f8b", "#d9d9d9", "#9a9a9a"


def plot_comparison(path: Path, figures: Mapping[str, float], title: str, table: str) -> None:
    """Draw bars of images per second. Raw and encoded crops have separate scales, since they differ by far.

    The file holds `table` as its description. So a test can tell whether a page shows a table and a chart of one run.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(2, 1, height_ratios=[len(names) for names in _PANELS.values()])
    for axes, (heading, names) in zip(panels, _PANELS.items(), strict=True):
        shown = names[::-1]
        bars = axes.barh([name.replace("_", " ") for name in shown], [figures[name] for name in shown])
        for bar, name in zip(bars, shown, strict=True):
            bar.set_color(_OURS if name.startswith("relic") else _CEILING if "ceiling" in name else _OTHERS)
        axes.bar_label(bars, labels=[f"{figures[name]:,.0f}" for name in shown], padding=4, fontsize=9)
        axes.set_title(f"{heading}, images/s", loc="left", fontsize=9)
        axes.set_xlim(0, 1.15 * max(figures[name] for name in names))
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Description": table})
