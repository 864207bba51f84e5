"""Measure a set behind a web server on loopback: start, waits, cache and CPU: `python benchmarks/remote.py`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m benchmarks.remote`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_folders, check_least
from relic.cli import parse
from relic.errors import command
from relic.files import temporary_folder, write_json

PROG = "benchmarks/remote.py"


@dataclasses.dataclass(frozen=True)
class RemoteBenchmarkConfig:
    """Measure sets behind a web server on loopback: start, waits of a consumer, speed from the cache, and CPU.

    There are two sets of made-up raw 224x224 crops: one of many shards, for the start, and one of a few.
    """

    shards: int = 1000
    """Shards of the set whose first batch is timed."""
    samples: int = 100
    """Samples in each of them."""
    batch_size: int = 128
    """Images in that batch."""
    large_shards: int = 8
    """Shards of the set for everything else."""
    large_samples: int = 200
    """Samples in each of them."""
    latency_ms: float = 20.0
    """Time until the server answers a request, for the first batch and the waiting consumer."""
    link_mb: float = 60.0
    """Megabytes per second of the link of the waiting consumer."""
    rounds: int = 5
    """Rounds of the speed from the full cache. A figure is their median."""
    work_dir: Path | None = None
    """Folder for temporary files, on the disk to measure. Default: the system's folder."""
    json: Path | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        least = {"shards": 2, "samples": 1, "batch_size": 1, "large_shards": 2, "large_samples": 64, "rounds": 1}
        check_least(self, {**least, "latency_ms": 0, "link_mb": 0.1})


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json."""
    config = parse(RemoteBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json)
    check_folders(work_dir=config.work_dir)
    from benchmarks._shared.machine import machine

    with temporary_folder(config.work_dir) as folder:
        figures = _measure(config, folder)
    if config.json is not None:
        write_json(config.json, figures | {"settings": _settings(config), "machine": machine()})
    return 0


def _settings(config: RemoteBenchmarkConfig) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in ("work_dir", "json")}


def _measure(config: RemoteBenchmarkConfig, folder: Path) -> dict[str, float]:
    from benchmarks._remote.measure import measure_cached, measure_cpu, measure_starts, measure_wait, write_set

    figures: dict[str, float] = {}

    def say(name: str, value: float, what: str) -> None:
        figures[name] = value
        print(f"{value:10.3f}  {what}", flush=True)

    caches = folder / "caches"
    caches.mkdir()
    many = write_set(folder / "many", config.shards, config.samples)
    starts = measure_starts(folder / "many", many, caches, config.latency_ms, config.batch_size)
    say("first_batch_seconds", starts.empty, f"s to the first batch of {config.shards:,} shards, nothing in the cache")
    say("resume_seconds", starts.half, "s to a batch in mid-epoch, nothing in the cache")
    say("again_seconds", starts.again, "s to a batch in mid-epoch, the cache left by the first run")
    large = write_set(folder / "large", config.large_shards, config.large_samples)
    cpu = measure_cpu(folder / "large", caches, config.rounds)
    say("fetch_cpu_seconds_per_gb", cpu.fetch, "CPU s per GB fetched to the disk, with its sha256")
    say("received_cpu_seconds_per_gb", cpu.received, "CPU s per GB that obstore receives, without relic")
    say("written_cpu_seconds_per_gb", cpu.written, "CPU s per GB that it receives and Python writes, without relic")
    say("sha256_cpu_seconds_per_gb", cpu.sha256, "CPU s per GB of the sha256 alone")
    say("range_cpu_us", cpu.range_us, "us of CPU per read of 150 kB of a shard")
    say("bare_range_cpu_us", cpu.bare_range_us, "us of CPU per read of 150 kB by obstore, without relic")
    ratio = measure_cached(folder / "large", large, caches, config.rounds)
    say("cached_ratio", ratio, "of the speed of a local set, from the full cache")
    wait = measure_wait(folder / "large", large, caches, config.link_mb, config.latency_ms)
    say("wait_share", wait, f"of its time a consumer waits, at half of {config.link_mb:g} MB/s, half the set cached")
    return figures


if __name__ == "__main__":
    sys.exit(main())
