"""Evaluate codecs: `python evaluate/run.py ...` or `torchrun --nproc_per_node N evaluate/run.py ...`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m evaluate.run`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluate.config import GONE, EvaluateConfig
from evaluate.plan import EvaluatePlan, make_plan
from relic.cli import parse
from relic.errors import InputError, before_work, command
from relic.launch import is_launched
from relic.machine import hide_gpus

PROG = "evaluate/run.py"

log = logging.getLogger(__name__)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate. Exit code 0: done. 2: the flags are wrong.

    1: the work failed, a stream was not exact or, with --strict, real and estimated rates differ.
    """
    config = parse(EvaluateConfig, argv, prog=PROG, gone=GONE)
    if config.device == "cpu":
        hide_gpus()
    # Under torchrun the ranks join first: a machine without the shards may fetch them for long.
    plan = None if is_launched() else _plan(config)

    import torch

    from evaluate.evaluate_all import evaluate_all
    from evaluate.report_files import write_report
    from evaluate.report_text import format_bd_rates, format_table
    from evaluate.round_trip import InexactError
    from relic.distributed import join_world

    with join_world(config.device, PROG) as world:
        try:
            report = evaluate_all(plan or _plan(config), world)
        except InexactError as error:
            raise InputError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the GPU's memory is full: use --workers 1, or --device cpu ({str(error).split('. ')[0]})"
            ) from error
    if world.is_main:
        write_report(config.out, report)
        print(format_table(report))
        if bd_rates := format_bd_rates(report):
            print(bd_rates)
        print(f"written: {config.out / 'report.html'}, {config.out / 'metrics.json'}, {config.out / 'per_image.csv'}")
        for message in report.gaps:
            log.warning("%s: %s: %s", PROG, "error" if config.strict else "warning", message)
    return 1 if report.gaps and config.strict else 0


def _plan(config: EvaluateConfig) -> EvaluatePlan:
    with before_work():
        return make_plan(config)


if __name__ == "__main__":
    sys.exit(main())
