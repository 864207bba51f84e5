"""The work of a run: open the codecs, score every image with each, and make the report.

Who runs where: each rank scores its own images. In a rank, `workers` threads score one image each, with one core per
thread (`evaluate/parallel.py`). Symbols are coded in as many processes, because the coder holds the GIL
(`evaluate/round_trip.py`). A GPU computes two images at a time, while the others are coded. Images of 4 megapixels or
more are scored one at a time, with all cores. Rank 0 writes the report.
"""

import logging
import math
from collections.abc import Sequence

from evaluate.codecs import Codec, open_labelled, open_onnx
from evaluate.curves import gather_curves
from evaluate.evaluator import evaluate
from evaluate.page_images import shown_images
from evaluate.plan import EvaluatePlan
from evaluate.published import PUBLISHED
from evaluate.references import AUTO_LIMIT, reference_curves
from evaluate.report import Report, make_report
from evaluate.sources import ImageSource, ShardSource, source_of
from evaluate.summary import summarise
from relic.bitstream.rdoq import RdoqSettings
from relic.distributed import World
from relic.errors import before_work, naming
from relic.machine import keep_freed_memory, share_of_cores
from relic.options import Switch

log = logging.getLogger(__name__)


def evaluate_all(plan: EvaluatePlan, world: World) -> Report:
    """Open every codec, then evaluate each.

    Raises RefusedError for a file that is no codec, and for images that a codec of a fixed size does not take. Raises
    InputError for an image that cannot be evaluated, and InexactError where the numbers would be wrong.
    """
    keep_freed_memory()
    config = plan.config
    workers = config.workers or share_of_cores()
    # All codecs are opened before the first is evaluated, so that a wrong file is reported at once.
    source = source_of(plan.images, io_threads=config.io_threads, direct=config.direct)
    if world.is_main and isinstance(source, ShardSource):
        log.info("%s", source.reading)
    workers = min(workers, math.ceil(source.num_images / world.size))  # each takes a process and its memory
    with before_work():
        codecs = _open_codecs(plan, world, workers)
        _check_sizes(codecs, source)
    evaluations = [
        evaluate(
            codec,
            source,
            world,
            bitstream=config.bitstream,
            recon_count=config.recon_count,
            workers=workers,
            rdoq=RdoqSettings(config.rdoq, config.rdoq_lmbda),
        )
        for codec in codecs
    ]
    summaries = [summarise(evaluation.results) for evaluation in evaluations]
    curves = gather_curves(evaluations, summaries, config.curve)
    if _wants_references(config.references, source):
        curves += reference_curves(source, world, workers=workers)
    if config.published:
        curves.append(PUBLISHED)
    shown = shown_images(evaluations, source, config.report_images) if world.is_main else []
    return make_report(
        evaluations=evaluations, summaries=summaries, curves=curves, source=source.describe(), shown=shown
    )


def _check_sizes(codecs: Sequence[Codec], source: ImageSource) -> None:
    """Raise InputError naming the first image that a codec of a fixed size does not take."""
    fixed = [codec for codec in codecs if codec.fixed_size is not None]
    for name, size in source.sizes() if fixed else ():
        for codec in fixed:
            with naming(f"{codec.label}, {name}"):
                codec.check_size(size.height, size.width)


def _open_codecs(plan: EvaluatePlan, world: World, workers: int) -> list[Codec]:
    config = plan.config
    labels = iter(plan.labels)
    codecs: list[Codec] = [
        open_labelled(name, next(labels), world.device, contexts=config.contexts) for name in config.checkpoint or []
    ]
    # With several workers each image has one core. With one, onnxruntime may use all (0).
    threads = 1 if workers > 1 else 0
    return codecs + [
        open_onnx(folder, next(labels), threads=threads, contexts=config.contexts) for folder in config.onnx or []
    ]


def _wants_references(references: Switch, source: ImageSource) -> bool:
    return source.num_images <= AUTO_LIMIT if references == "auto" else references
