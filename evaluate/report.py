"""The numbers of a report, computed once. Text, page, plots and files only write them. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evaluate.curves import Curve, bd_rate_against
from evaluate.results import Evaluation, ImageResult
from evaluate.summary import RateGap, Summary, rate_gap
from relic.codec.bd_rate import BdRate
from relic.codec.constants import MIN_MS_SSIM_SIDE
from relic.columns import counted


class Version(NamedTuple):
    """An image's reconstruction by one codec."""

    label: str
    uri: str
    result: ImageResult


class ShownImage(NamedTuple):
    """An image of report.html."""

    rank: str
    """`worst 1`, `best 2`, ..."""
    name: str
    width: int
    height: int
    """Of the part that is shown, in pixels."""
    original: str
    """A data URI."""
    versions: list[Version]
    cut: str
    """Says which part is shown; empty where the whole image is."""


class BdRates(NamedTuple):
    """The BD-rates of a curve against the first curve; None where one is not defined."""

    psnr_db: BdRate | None
    ms_ssim_db: BdRate | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's numbers. All but `shown` are the same on every rank."""

    evaluations: tuple[Evaluation, ...]
    summaries: tuple[Summary, ...]
    """One per evaluation."""
    curves: tuple[Curve, ...]
    """First those of the codecs, then JPEG and WebP, then the published one."""
    bd_rates: tuple[BdRates, ...]
    """One per curve."""
    notes: tuple[str, ...]
    """What the means leave out."""
    gaps: tuple[str, ...]
    """A message per codec whose real and estimated rates differ by more than 1 % + 8 bytes per image."""
    source: dict[str, str]
    """What the images are."""
    shown: tuple[ShownImage, ...] = ()
    """The images of report.html; on rank 0 only."""

    @property
    def bd_rows(self) -> list[tuple[str, str, str]]:
        """Name, BD-rate at equal PSNR and BD-rate at equal MS-SSIM, for each curve that has one of the two."""
        return [
            (curve.name, _bd_text(found.psnr_db), _bd_text(found.ms_ssim_db))
            for curve, found in zip(self.curves[1:], self.bd_rates[1:], strict=True)
            if any(found)
        ]

    def curve_of(self, evaluation: Evaluation) -> int:
        """The position of the curve that holds the codec's point."""
        label = evaluation.codec.label
        return next(place for place, curve in enumerate(self.curves) if label in {point.name for point in curve.points})


def make_report(
    *,
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Summary],
    curves: Sequence[Curve],
    source: dict[str, str],
    shown: Sequence[ShownImage],
) -> Report:
    """Compute the BD-rates, the notes and the messages about rates."""
    anchor = curves[0]
    found_gaps = ((evaluation.codec.label, rate_gap(evaluation.results)) for evaluation in evaluations)
    return Report(
        evaluations=tuple(evaluations),
        summaries=tuple(summaries),
        curves=tuple(curves),
        bd_rates=tuple(
            BdRates(
                psnr_db=bd_rate_against(anchor, curve, "psnr_db"),
                ms_ssim_db=bd_rate_against(anchor, curve, "ms_ssim_db"),
            )
            for curve in curves
        ),
        notes=tuple(_notes(evaluations, summaries)),
        gaps=tuple(_gap_message(label, gap) for label, gap in found_gaps if gap is not None and gap.is_wide),
        source=source,
        shown=tuple(shown),
    )


def _notes(evaluations: Sequence[Evaluation], summaries: Sequence[Summary]) -> list[str]:
    notes = []
    if missing := summaries[0].num_without_ms_ssim:
        notes.append(f"{counted(missing, 'image')} without MS-SSIM: a side is under {MIN_MS_SSIM_SIDE} pixels")
    effort, lmbda = evaluations[0].rdoq
    if effort != "off":
        notes.append(f"symbols moved by --rdoq {effort}{'' if lmbda is None else f' --rdoq_lmbda {lmbda:g}'}")
    for evaluation, summary in zip(evaluations, summaries, strict=True):
        label = evaluation.codec.label
        if evaluation.codec.qat and evaluation.codec.precision == "float32":
            notes.append(
                f"{label}: trained with --qat and evaluated in float. Its weights fit the roundings of INT8: evaluate "
                "its export with --int8"
            )
        if summary.num_exact:
            notes.append(f"{label}: {counted(summary.num_exact, 'exact reconstruction')}, left out of the means in dB")
    return notes


def _gap_message(label: str, gap: RateGap) -> str:
    return (
        f"{label}: {gap.real:.0f} real bytes per image, {gap.estimated:.0f} estimated. Often the latents have left the "
        "density, because the entropy bottleneck was not trained with them: train with --train_scope replaced+hyper "
        "and --loss_type rd"
    )


def _bd_text(bd_rate: BdRate | None) -> str:
    return f"{bd_rate.percent:+.1f} % (overlap {bd_rate.overlap:.0%})" if bd_rate else "-"
