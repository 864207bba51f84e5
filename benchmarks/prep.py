"""Compare the speed of packing with a bare loop of the same work: `python benchmarks/prep.py`."""

import dataclasses
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: same import root as `python -m benchmarks.prep`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_folders, check_least
from relic.cli import parse
from relic.errors import InputError, command
from relic.files import temporary_folder, write_json

PROG = "benchmarks/prep.py"


@dataclasses.dataclass(frozen=True)
class PrepBenchmarkConfig:
    """Images per second of make_shards.py with 1 worker and with one per core, and of a bare loop that writes nothing.

    The images are read several times, so they come from the page cache.
    """

    images: Path | None = None
    """Folder of JPEGs, or of COCO's layout. Default: photographs from installed packages."""
    images_per_worker: int = 2400
    """Images per worker of a run, and per process of a loop."""
    rounds: int = 3
    """Rounds of all measurements. A figure is their median."""
    listed: int = 118_287
    """Number of files in the folder for the start-up time. Default: that of COCO's train2017."""
    work_dir: Path | None = None
    """Folder for temporary files, on the disk to measure. Default: the system's folder."""
    json: Path | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        check_least(self, {"images_per_worker": 20, "rounds": 1, "listed": 1})


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turns, print, and write the figures to --json."""
    config = parse(PrepBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json)
    check_folders(images=config.images, work_dir=config.work_dir)
    from benchmarks._shared.machine import machine

    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(config.work_dir))
        results = _measure(config, folder)
    if config.json is not None:
        write_json(config.json, results | {"machine": machine()})
    return 0


def _measure(config: PrepBenchmarkConfig, folder: Path) -> dict[str, Any]:
    from benchmarks._prep.loops import SIDE
    from benchmarks._prep.runs import Rate, fast_likeness, median_rates, seconds_to_start
    from benchmarks._prep.tables import prep_ratios, prep_table
    from benchmarks._shared.crops import listed_images

    images = [path for path in listed_images(folder, config.images) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not images:
        raise InputError(f"--images {config.images}: holds no JPEG")
    random.Random(0).shuffle(images)  # the listing is sorted, so without this the workers would get different images
    loops: defaultdict[str, list[float]] = defaultdict(list)
    runs: defaultdict[str, list[Rate]] = defaultdict(list)
    for _ in range(config.rounds):  # in rounds, so that a change in the machine's speed affects everything
        _measure_round(config, folder, images, loops, runs)
    rates = {name: median_rates(found) for name, found in runs.items()}
    figures = {name: rate.images_per_second for name, rate in rates.items()}
    figures |= {name: statistics.median(found) for name, found in loops.items()}
    likeness = fast_likeness(images, SIDE)
    start = seconds_to_start(images[0], folder, config.listed)
    others = {
        "fast_psnr_db": likeness.overall_db,
        "fast_worst_psnr_db": likeness.worst_db,
        "listed_files": config.listed,
        "seconds_to_first_shard": start,
        "peak_mb": max(rate.peak_mb for rate in rates.values()),
        "start_seconds": statistics.median(rate.start_seconds for rate in rates.values()),
    }
    quotients = prep_ratios(figures)
    by_round = {name: [rate.images_per_second for rate in found] for name, found in runs.items()} | dict(loops)
    print(prep_table(figures, by_round, quotients, others), flush=True)
    settings = {"images_per_worker": config.images_per_worker, "rounds": config.rounds, "sources": len(images)}
    return {**figures, **others, "ratios": quotients, "by_round": by_round, "settings": settings}


def _measure_round(
    config: PrepBenchmarkConfig,
    folder: Path,
    images: Sequence[Path],
    loops: defaultdict[str, list[float]],
    runs: defaultdict[str, list[Any]],
) -> None:
    from benchmarks._prep.loops import images_per_second
    from benchmarks._prep.runs import measure_rate
    from benchmarks._prep.tables import all_loops, all_variants

    for name, variant in all_variants():
        runs[name].append(measure_rate(images, folder, variant, config.images_per_worker))
    for name, step, processes, share in all_loops():
        count = max(processes, int(config.images_per_worker * share) * processes)
        paths = [images[number % len(images)] for number in range(count)]
        loops[name].append(images_per_second(step, paths, processes))


if __name__ == "__main__":
    sys.exit(main())
