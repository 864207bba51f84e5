"""Pack images into shards: `python prep/make_shards.py --coco_dir D`."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m prep.make_shards`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from prep.config import PrepConfig
from relic.cli import parse
from relic.columns import counted
from relic.errors import before_work, command
from relic.signals import handling

PROG = "prep/make_shards.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, plan, check, pack each split, print a summary."""
    config = parse(PrepConfig, argv, prog=PROG)
    try:
        with handling((signal.SIGTERM,), _terminate):
            return _run(config)
    except _Terminated:
        print(f"{PROG}: terminated; give the same command again to continue", file=sys.stderr)
        return 128 + signal.SIGTERM


def _run(config: PrepConfig) -> int:
    from prep.packing import pack_split
    from prep.planning import bytes_free, check_disk, plan_splits
    from prep.split_folder import only_writer
    from relic.machine import available_cores, pillow_name

    workers = config.workers or available_cores()
    with before_work():
        plans = plan_splits(config)
        for plan in plans:
            plan.check()
    print(f"prep: {pillow_name()}, workers: {workers}", flush=True)
    needed = sum(plan.bytes_needed() for plan in plans)
    for plan in plans:
        print(f"{plan.packing.split}: {counted(plan.images, 'image')}, {counted(len(plan.tasks), 'shard')}", flush=True)
    print(f"{needed / 1e6:,.1f} MB needed, {bytes_free(config.out_dir) / 1e6:,.1f} MB free", flush=True)
    with before_work():
        check_disk(config.out_dir, needed, config.encoding)
    if config.dry_run:
        return 0
    config.out_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(config.out_dir):
        for plan in plans:
            plan.clear()
        for plan in plans:
            print(pack_split(plan, workers=workers, max_bad=config.max_bad), flush=True)
    return 0


class _Terminated(BaseException):
    """SIGTERM as an exception. It is a BaseException, so no `except Exception` catches it."""


def _terminate() -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
