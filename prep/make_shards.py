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
    terminated = []

    def terminate() -> None:
        terminated.append(True)
        raise KeyboardInterrupt  # of the exceptions that a handler may raise, ray passes on only this one

    try:
        with handling((signal.SIGTERM,), terminate):
            return _run(config)
    except KeyboardInterrupt:
        if not terminated:
            raise
        print(f"{PROG}: terminated; give the same command again to continue", file=sys.stderr)
        return 128 + signal.SIGTERM


def _run(config: PrepConfig) -> int:
    from prep.engines import check_engine, engine_of
    from prep.owner import owning
    from prep.packing import pack_split
    from prep.planning import bytes_free, check_disk, plan_splits
    from relic.machine import available_cores, pillow_name

    with before_work():
        check_engine(config)
        plans = plan_splits(config)
        for plan in plans:
            plan.check()
    workers = config.workers or ("as many as the cluster has cores" if config.engine == "ray" else available_cores())
    print(f"prep: {pillow_name()}, workers: {workers}", flush=True)
    needed = sum(plan.bytes_needed() for plan in plans)
    if config.out_url is not None:
        needed = max(plan.bytes_at_once(config.workers or available_cores()) for plan in plans)
    for plan in plans:
        print(f"{plan.packing.split}: {counted(plan.images, 'image')}, {counted(len(plan.tasks), 'shard')}", flush=True)
    print(f"{needed / 1e6:,.1f} MB needed, {bytes_free(config.out_dir) / 1e6:,.1f} MB free", flush=True)
    with before_work():
        check_disk(config.out_dir, needed, config.encoding)
    if config.dry_run:
        return 0
    config.out_dir.mkdir(parents=True, exist_ok=True)

    def begin(shared: bool) -> None:
        for plan in plans:
            plan.begin(shared=shared)

    with engine_of(config) as engine, owning(config.out_dir, config.shard_part, config.splits, begin) as owner:
        for plan in plans:
            print(pack_split(plan, engine=engine, owner=owner, max_bad=config.max_bad), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
