"""Fine-tune a swapped codec on packed crops: `python train/main.py` or `torchrun --nproc_per_node N train/main.py`."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m train.main`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import command, parse, print_error
from train.config import GONE, TrainConfig

PROG = "train/main.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Train; 0 when done or stopped by a signal after saving, 1 when the run failed."""
    config = parse(TrainConfig, argv, prog=PROG, gone=GONE)

    from relic.distributed import join_world
    from train.build import build_trainer
    from train.guard import DivergedError

    with join_world(config.device) as world, ExitStack() as stack:
        trainer, tracker, values = build_trainer(config, world, stack)
        try:
            result = trainer.run(tracker, values)
        except DivergedError as error:
            print_error(PROG, str(error))
            return 1
    if result is not None and world.is_main:
        print(f"done: {config.save_dir / 'last.pt'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
