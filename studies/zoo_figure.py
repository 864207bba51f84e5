"""Draw the rate-distortion curves of `studies/zoo.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from studies.calibration_figures import save


def draw_rates(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> None:
    """PSNR against real bpp. `curves`: title of a set of images -> title of a row -> points (bpp, PSNR in dB)."""
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4.2), squeeze=False)
    for axis, (title, rows) in zip(axes[0], curves.items(), strict=True):
        for label, points in rows.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=label)
        axis.set(title=title, xlabel="real bpp", ylabel="PSNR, dB")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8, loc="lower right")
    save(figure, path)
