"""What an evaluation found: computed here once, and only written out by text, page, plots and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evaluate.curves import BdRate, Curve, bd_rate_against
from evaluate.evaluator import Evaluation
from evaluate.page_pictures import ShownPicture
from evaluate.summary import RateGap, Summary, rate_gap
from relic.codec.constants import MIN_MS_SSIM_SIDE


class BdRates(NamedTuple):
    """What a curve costs against the first curve, by each quality; None where this is not defined."""

    psnr_db: BdRate | None
    ms_ssim_db: BdRate | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's numbers. All but `shown` are the same on every rank."""

    evaluations: tuple[Evaluation, ...]
    summaries: tuple[Summary, ...]
    """Of each evaluation."""
    curves: tuple[Curve, ...]
    """The codecs' first, then JPEG's and WebP's, then the published one."""
    bd_rates: tuple[BdRates, ...]
    """Of each curve."""
    notes: tuple[str, ...]
    """What the means leave out."""
    gaps: tuple[str, ...]
    """Per codec whose real and estimated rates differ by more than 1 % + 8 bytes per image: why, and what helps."""
    source: dict[str, str]
    """What the images are."""
    shown: tuple[ShownPicture, ...] = ()
    """The images of report.html; on rank 0 alone."""

    @property
    def bd_rows(self) -> list[tuple[str, str, str]]:
        """Name, BD-rate at equal PSNR and at equal MS-SSIM of each curve that has one against the first."""
        return [
            (curve.name, _bd_text(found.psnr_db), _bd_text(found.ms_ssim_db))
            for curve, found in zip(self.curves[1:], self.bd_rates[1:], strict=True)
            if any(found)
        ]

    def curve_of(self, evaluation: Evaluation) -> int:
        """The place of the curve that has the codec's point."""
        label = evaluation.codec.label
        return next(place for place, curve in enumerate(self.curves) if label in {point.name for point in curve.points})


def make_report(
    *,
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Summary],
    curves: Sequence[Curve],
    source: dict[str, str],
    shown: Sequence[ShownPicture],
) -> Report:
    """Compute what follows from the evaluations and their summaries."""
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
        notes.append(f"{missing} images without MS-SSIM: a side is under {MIN_MS_SSIM_SIDE} pixels")
    for evaluation, summary in zip(evaluations, summaries, strict=True):
        if summary.num_exact:
            label = evaluation.codec.label
            notes.append(f"{label}: {summary.num_exact} exact reconstructions, left out of the means in dB")
    return notes


def _gap_message(label: str, gap: RateGap) -> str:
    return (
        f"{label}: {gap.real:.0f} bytes per image in fact, {gap.estimated:.0f} estimated. Often the latents have left "
        "the density, since the entropy bottleneck was not trained with them: train with --train_scope replaced+hyper "
        "and --loss_type rd"
    )


def _bd_text(bd_rate: BdRate | None) -> str:
    return f"{bd_rate.percent:+.1f} % (overlap {bd_rate.overlap:.0%})" if bd_rate else "-"
