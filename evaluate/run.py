"""Judge checkpoints: `python evaluate/run.py ...` or `torchrun --nproc_per_node N evaluate/run.py ...`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m evaluate.run`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluate.config import GONE, EvaluateConfig
from relic.cli import command, parse, print_error

PROG = "evaluate/run.py"

log = logging.getLogger(__name__)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when done, 1 when a number cannot be trusted (or, with --strict, real and estimated rates differ)."""
    config = parse(EvaluateConfig, argv, prog=PROG, gone=GONE)

    from evaluate.codecs import open_labelled
    from evaluate.evaluator import InexactError, evaluate
    from evaluate.report import format_table, wide_gaps, write_report
    from evaluate.sources import open_source
    from relic.distributed import join_world

    with join_world(config.device) as world:
        # All are opened before the first is judged: a wrong file among them is known at once.
        codecs = [
            open_labelled(checkpoint, label) for checkpoint, label in zip(config.checkpoint, config.labels, strict=True)
        ]
        source = open_source(config.shards, config.split, config.images)
        try:
            evaluations = [
                evaluate(codec, source, world, bitstream=config.bitstream, recon_count=config.recon_count)
                for codec in codecs
            ]
        except InexactError as error:
            print_error(PROG, str(error))
            return 1
    gaps = wide_gaps(evaluations)
    if world.is_main:
        write_report(config.out, evaluations, source.describe())
        print(format_table(evaluations))
        print(f"written: {config.out / 'metrics.json'}, {config.out / 'per_image.csv'}")
        for message in gaps:
            log.warning("%s: %s: %s", PROG, "error" if config.strict else "warning", message)
    return 1 if gaps and config.strict else 0


if __name__ == "__main__":
    sys.exit(main())
