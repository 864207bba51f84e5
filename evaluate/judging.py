"""The whole of a run's work, from opened codecs to what a report needs."""

from typing import NamedTuple

from evaluate.codecs import Codec, open_labelled, open_onnx
from evaluate.curves import Curve, gather_curves
from evaluate.evaluator import Evaluation, evaluate
from evaluate.page_pictures import ShownPicture, show
from evaluate.plan import Plan
from evaluate.published import PUBLISHED
from evaluate.references import AUTO_LIMIT, reference_curves
from evaluate.sources import ImageSource, source_of
from relic.distributed import World
from relic.machine import keep_freed_memory
from relic.options import Switch


class Verdict(NamedTuple):
    """What a run found. Evaluations and curves are the same on every rank."""

    evaluations: list[Evaluation]
    curves: list[Curve]
    """The codecs' first, then JPEG's and WebP's, then the published one."""
    shown: list[ShownPicture]
    """On rank 0 alone."""
    source: dict[str, str]
    """What the images are."""


_CUDA_WORKERS = 2
"""One image on the device while another is coded: more would only fill its memory."""


def judge_everything(plan: Plan, world: World) -> Verdict:
    """Open all, judge all. Raises InputError, and InexactError where no number can be trusted."""
    keep_freed_memory()
    config = plan.config
    workers = config.workers_here
    if world.device.type == "cuda" and not config.workers:
        workers = min(workers, _CUDA_WORKERS)
    # All are opened before the first is judged: a wrong file among them is known at once.
    source = source_of(plan.images)
    codecs = _open_codecs(plan, world, workers)
    evaluations = [
        evaluate(codec, source, world, bitstream=config.bitstream, recon_count=config.recon_count, workers=workers)
        for codec in codecs
    ]
    curves = gather_curves(evaluations, config.curve)
    if _wants_references(config.references, source):
        curves += reference_curves(source, world, workers=workers)
    if config.published:
        curves.append(PUBLISHED)
    shown = show(evaluations, source, config.report_images) if world.is_main else []
    return Verdict(evaluations, curves, shown, source.describe())


def _open_codecs(plan: Plan, world: World, workers: int) -> list[Codec]:
    config = plan.config
    labels = iter(plan.labels)
    codecs: list[Codec] = [open_labelled(name, next(labels), world.device) for name in config.checkpoint or []]
    # Side by side, each image has one core; alone, onnxruntime may take all (0).
    threads = 1 if workers > 1 else 0
    return codecs + [open_onnx(folder, next(labels), threads=threads) for folder in config.onnx or []]


def _wants_references(references: Switch, source: ImageSource) -> bool:
    return source.num_images <= AUTO_LIMIT if references == "auto" else references
