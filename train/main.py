"""Fine-tune a swapped codec on packed crops: `python train/main.py` or `torchrun --nproc_per_node N train/main.py`."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m train.main`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import InputError, before_work, command
from relic.launch import is_launched
from relic.machine import hide_gpus
from relic.storage.run_copy import RunCopy
from train.config import GONE, TrainConfig
from train.plan import CHECKPOINTS, RECORDS, TrainPlan, make_plan

PROG = "train/main.py"
_MKL_REPEATS = {"MKL_CBWR": "AUTO", "MKL_DYNAMIC": "FALSE"}
"""Make MKL's sums the same in every run, whatever the load of the machine. MKL reads them when torch is loaded."""
_OUT_OF_MEMORY = (
    "the GPU's memory is full: use a smaller --batch_size, more processes, --amp true or smaller crops; "
    "--resume auto continues from the last checkpoint, with the same flags"
)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Train. Exit code 0: done, or saved and stopped after a signal; 1: the run failed; 2: the flags are refused."""
    config = parse(TrainConfig, argv, prog=PROG, gone=GONE)
    for name, value in _MKL_REPEATS.items():
        os.environ.setdefault(name, value)
    if config.deterministic:  # cuBLAS reads this variable when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.device == "cpu":
        hide_gpus()
    # Under torchrun the ranks join first: a machine without the shards may fetch them for long.
    plan = None if is_launched() else _plan(config)

    import torch

    from relic.distributed import join_world
    from train.build import build_trainer
    from train.contexts import CROPS, add_contexts
    from train.guard import DivergedError

    with ExitStack() as stack, join_world(config.device, PROG) as world:
        plan = plan or _plan(config)
        try:
            result = build_trainer(plan, world, stack).run()
        except DivergedError as error:
            raise InputError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise InputError(f"{_OUT_OF_MEMORY} ({str(error).split('. ')[0]})") from error
    if result is not None and world.is_main:
        if config.contexts:
            written = [path for name in CHECKPOINTS if (path := config.save_dir / name).is_file()]
            add_contexts(written, plan.train_set, CROPS, world.device)
            if config.save_url is not None:
                with RunCopy(config.save_dir, config.save_url) as copy:
                    copy.put(*RECORDS, *CHECKPOINTS)
        print(f"done: {config.save_dir / 'last.pt'}")
    return 0


def _plan(config: TrainConfig) -> TrainPlan:
    with before_work():
        return make_plan(config)


if __name__ == "__main__":
    sys.exit(main())
