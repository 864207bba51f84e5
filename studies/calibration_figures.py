"""Draw the figures of `studies/calibration.py` from the results that exist."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from relic.files import atomic_write
from studies.calibration_results import PARTS, TUNED, Results, curve

_COLOURS = dict(zip(TUNED, ("tab:red", "tab:green"), strict=True))

_NEAR_DB = -1.6, 0.25
"""Range of the enlarged row, in dB relative to the PSNR of the GDN codec."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the figures for which `results` suffice. Returns the files."""
    parts = [part for part in PARTS if _curves(results, part)]
    return [_draw_curves(results, parts, folder / "fine_tuning.png")] if parts else []


def _curves(results: Results, part: str) -> dict[str, Sequence[Mapping[str, Any]]]:
    return {kind: found for kind in TUNED if (found := curve(results, part, kind))}


def _draw_curves(results: Results, parts: Sequence[str], path: Path) -> Path:
    """One column per part: PSNR, MS-SSIM and rate against images seen. A dotted line shows the GDN codec."""
    rows = (
        ("psnr_db", "PSNR, dB", None),
        ("psnr_db", "PSNR, dB, near GDN", _NEAR_DB),
        ("ms_ssim", "MS-SSIM", None),
        ("bpp", "estimated bpp", None),
    )
    figure, axes = plt.subplots(len(rows), len(parts), figsize=(1 + 3.6 * len(parts), 11), sharex=True, squeeze=False)
    teacher = results.get("original")
    for column, part in enumerate(parts):
        axes[0][column].set_title(part)
        for row, (name, title, near) in enumerate(rows):
            axis = axes[row][column]
            for kind, points in _curves(results, part).items():
                images, values = [p["images_seen"] for p in points], [p[name] for p in points]
                axis.plot(images, values, marker=".", color=_COLOURS[kind], label=TUNED[kind])
            if teacher is not None:
                figures = teacher["evaluations"]["val"]["figures"][0]
                level = figures["bpp_estimated" if name == "bpp" else name]
                axis.axhline(level, color="black", linestyle=":", label="GDN")
                if near is not None:
                    axis.set_ylim(level + near[0], level + near[1])
            axis.set_ylabel(title if column == 0 else "")
            axis.grid(alpha=0.3)
        axes[-1][column].set_xlabel("images seen")
    axes[0][0].legend(fontsize=8)
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, the same bytes for the same figure."""
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
    return path
