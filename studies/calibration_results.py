"""Read the results of `studies/calibration.py`: kinds of runs and curves. Results may be missing."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Results = Mapping[str, Mapping[str, Any]]
"""Run name -> content of its JSON."""
ValidationPoint = Mapping[str, Any]
"""One validation: what the trainer measured on the val crops after `images_seen` images."""
TUNED = {"naive": "naive, fine-tuned", "calibrated": "calibrated, fine-tuned"}
"""The kinds of trained runs. Each has a curve."""
EVALUATIONS = {"val": "val crops", "kodak": "images of --images"}
PARTS = ("encoder", "decoder", "all")


class Reached(NamedTuple):
    """Whether a naive swap reached the loss of a calibrated start."""

    images: int | None
    """The number of images after which it did; None: never."""
    best_db: float
    start_db: float


class CurveComparison(NamedTuple):
    """The curve of a calibrated swap, compared to its start and to the naive swap's curve."""

    part: str
    lowers_loss: bool
    psnr_change_db: float
    bpp_change: float
    """As a fraction of the start's rate."""
    dip: ValidationPoint | None
    """The point with the lowest PSNR, if it is more than 0.1 dB below the start."""
    points: int = 0
    """Number of points at which both curves have a validation."""
    better: int = 0
    """Number of these points at which the loss of the calibrated swap is lower."""
    last_gain_db: float = 0.0
    naive: Reached | None = None


def curve(results: Results, part: str, kind: str) -> Sequence[ValidationPoint]:
    """The validations of the run of this part and kind; empty if it is not finished."""
    return results[f"{part}-{kind}"].get("validations", []) if f"{part}-{kind}" in results else []


def comparisons(results: Results) -> list[CurveComparison]:
    """One comparison per part whose calibrated swap was trained."""
    pairs = [(part, curve(results, part, "calibrated")) for part in PARTS]
    return [_compared(part, curve(results, part, "naive"), tuned) for part, tuned in pairs if tuned]


def _compared(part: str, naive: Sequence[ValidationPoint], tuned: Sequence[ValidationPoint]) -> CurveComparison:
    start, end = tuned[0], tuned[-1]
    lowest = min(tuned, key=lambda point: point["psnr_db"])
    alone = CurveComparison(
        part=part,
        lowers_loss=end["loss"] < start["loss"],
        psnr_change_db=end["psnr_db"] - start["psnr_db"],
        bpp_change=end["bpp"] / start["bpp"] - 1,
        dip=lowest if lowest["psnr_db"] < start["psnr_db"] - 0.1 else None,
    )
    theirs = {point["images_seen"]: point for point in naive}
    both = [(point, theirs[point["images_seen"]]) for point in tuned if point["images_seen"] in theirs]
    if not both:
        return alone
    return alone._replace(
        points=len(both),
        better=sum(mine["loss"] < other["loss"] for mine, other in both),
        last_gain_db=both[-1][0]["psnr_db"] - both[-1][1]["psnr_db"],
        naive=_reached(naive, start),
    )


def _reached(naive: Sequence[ValidationPoint], start: ValidationPoint) -> Reached:
    """Find when the loss of a naive swap reached that of a calibrated start."""
    images = next((point["images_seen"] for point in naive if point["loss"] <= start["loss"]), None)
    return Reached(images, max(point["psnr_db"] for point in naive), start["psnr_db"])
