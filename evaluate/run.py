"""Evaluate codecs: `python evaluate/run.py ...` or `torchrun --nproc_per_node N evaluate/run.py ...`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m evaluate.run`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluate.config import GONE, EvaluateConfig
from evaluate.plan import make_plan
from relic.cli import parse
from relic.errors import before_work, command, print_error

PROG = "evaluate/run.py"

log = logging.getLogger(__name__)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate. Exit code 0: done. 2: the flags are wrong.

    1: the work failed, a stream was not exact or, with --strict, real and estimated rates differ.
    """
    config = parse(EvaluateConfig, argv, prog=PROG, gone=GONE)
    with before_work():
        plan = make_plan(config)

    import torch

    from evaluate.evaluate_all import evaluate_all
    from evaluate.report_files import write_report
    from evaluate.report_text import format_bd_rates, format_table
    from evaluate.round_trip import InexactError
    from relic.distributed import join_world

    with join_world(config.device) as world:
        try:
            report = evaluate_all(plan, world)
        except InexactError as error:
            print_error(PROG, str(error))
            return 1
        except torch.OutOfMemoryError as error:
            print_error(
                PROG, f"the GPU's memory is full: use --workers 1, or --device cpu ({str(error).split('. ')[0]})"
            )
            return 1
    if world.is_main:
        write_report(config.out, report)
        print(format_table(report))
        if bd_rates := format_bd_rates(report):
            print(bd_rates)
        print(f"written: {config.out / 'report.html'}, {config.out / 'metrics.json'}, {config.out / 'per_image.csv'}")
        for message in report.gaps:
            log.warning("%s: %s: %s", PROG, "error" if config.strict else "warning", message)
    return 1 if report.gaps and config.strict else 0


if __name__ == "__main__":
    sys.exit(main())
