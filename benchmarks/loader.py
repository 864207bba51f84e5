"""Compare the loader with others, or measure it on your own shards: `python benchmarks/loader.py`."""

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: same import root as `python -m benchmarks.loader`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.errors import InputError, before_work, command
from relic.files import temporary_folder, write_json
from relic.options import Split

PROG = "benchmarks/loader.py"


@dataclasses.dataclass(frozen=True)
class LoaderBenchmarkConfig:
    """Images per second of relic's loader, webdataset, a torch folder loader, and the upper limit of the machine.

    --shards D measures your own set instead. --wait measures how long a consumer with a fixed time per batch waits.
    """

    images: Path | None = None
    """Folder of images to cut the crops from. Default: photographs from installed packages."""
    crops: int = 3000
    """Smallest number of 224x224 crops to pack."""
    batch_size: int = 64
    """Images per batch."""
    epochs: int = 4
    """Epochs per loader. A figure is the median of the epochs after the first."""
    work_dir: Path | None = None
    """Folder for the packed crops, which are kept and used again. Default: a temporary folder."""
    json: Path | None = None
    """JSON file to write the figures to."""
    plot: Path | None = None
    """PNG file to draw a bar chart of the comparison to."""
    shards: Path | None = None
    """Your own folder of shards, to measure instead of comparing loaders."""
    split: Split = "train"
    """Split of --shards."""
    gpu_images_per_second: float = 0.0
    """Images per second that one GPU trains at, to print how many GPUs --shards feeds."""
    wait: bool = False
    """Measure the wait of a consumer of raw and of jpg crops instead of comparing loaders."""
    consumer_ms: float | None = None
    """Milliseconds per batch that the consumer of --wait takes. Default: 20 for raw and 30 for jpg crops."""
    wait_batches: int = 500
    """Number of batches of --wait, after the first."""

    def __post_init__(self) -> None:
        if self.shards is not None and self.wait:
            raise InputError("--wait packs its own crops; leave out --shards")
        if self.plot is not None and (self.wait or self.shards is not None):
            raise InputError("--plot draws the comparison of loaders; leave out --wait and --shards")
        if self.consumer_ms is not None and not self.wait:
            raise InputError("--consumer_ms needs --wait")
        if self.gpu_images_per_second and self.shards is None:
            raise InputError("--gpu_images_per_second needs --shards")
        if self.shards is None and self.crops < self.batch_size:
            raise InputError(f"--crops {self.crops}: fewer than one batch (--batch_size {self.batch_size})")
        least = {"crops": 1, "batch_size": 1, "epochs": 2, "wait_batches": 1, "gpu_images_per_second": 0}
        check_least(self, least)
        if self.consumer_ms is not None and self.consumer_ms < 0:
            raise InputError(f"--consumer_ms {self.consumer_ms}: must be 0 or more")


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json and --plot."""
    config = parse(LoaderBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json, plot=config.plot)
    with ExitStack() as stack:
        if config.shards is not None:
            results = _own_set(config, config.shards)
        else:
            folder = config.work_dir or stack.enter_context(temporary_folder())
            results = _wait(config, folder) if config.wait else _compare(config, folder, stack)
    if config.json is not None:
        from benchmarks._shared.machine import machine

        write_json(config.json, results | {"machine": machine()})
    return 0


def _compare(config: LoaderBenchmarkConfig, folder: Path, stack: ExitStack) -> dict[str, Any]:
    from benchmarks._loader.measure import ratios, steady_rate, take_turns, time_shares
    from benchmarks._loader.peers import all_peers
    from benchmarks._loader.tables import comparison_table
    from benchmarks._shared.crops import prepare_crops
    from relic.machine import available_cores

    crops = prepare_crops(folder, config.images, config.crops, available_cores())
    peers = all_peers(crops, config.batch_size, available_cores(), stack)
    passes = take_turns(peers, config.epochs)
    figures = {name: steady_rate(made) for name, made in passes.items()}
    quotients = ratios(figures)
    shares = {peer.name: time_shares(passes[peer.name][1:], available_cores()) for peer in peers if peer.times}
    print(comparison_table(figures, passes, quotients, shares), flush=True)
    if config.plot is not None:
        from benchmarks._loader.plot import plot_comparison

        what = f"{crops.raw.num_samples:,} crops of 224x224, batches of {config.batch_size}, cores: {available_cores()}"
        plot_comparison(config.plot, figures, what)
    by_epoch = {name: [one.images_per_second for one in made] for name, made in passes.items()}
    settings = {"crops": crops.raw.num_samples, "batch_size": config.batch_size, "epochs": config.epochs}
    shares_by_name = {name: one._asdict() for name, one in shares.items()}
    return {**figures, "ratios": quotients, "by_epoch": by_epoch, "shares": shares_by_name, "settings": settings}


def _own_set(config: LoaderBenchmarkConfig, folder: Path) -> dict[str, Any]:
    from benchmarks._loader.own_set import measure_own_set
    from benchmarks._loader.tables import own_set_table
    from relic.shards.shard_set import open_shard_set

    with before_work():
        shards = open_shard_set(folder, config.split)
    measured = measure_own_set(shards, config.batch_size, config.epochs)
    print(own_set_table(shards, measured, config.gpu_images_per_second), flush=True)
    gpus = measured.images_per_second / config.gpu_images_per_second if config.gpu_images_per_second else None
    return measured._asdict() | {"shares": measured.shares._asdict(), "gpus": gpus}


def _wait(config: LoaderBenchmarkConfig, folder: Path) -> dict[str, Any]:
    from benchmarks._loader.measure import consumer_wait
    from benchmarks._loader.tables import wait_table
    from benchmarks._shared.crops import prepare_crops
    from relic.machine import available_cores

    crops = prepare_crops(folder, config.images, config.crops, available_cores())
    waits = {}
    for name, shards, usual_ms in (("relic_raw", crops.raw, 20.0), ("relic_jpg", crops.jpg, 30.0)):
        pace_ms = usual_ms if config.consumer_ms is None else config.consumer_ms
        waits[name] = pace_ms, consumer_wait(shards, config.batch_size, pace_ms / 1000, config.wait_batches)
    print(wait_table(waits, config.wait_batches), flush=True)
    shares = {f"{name}_wait": share for name, (_, share) in waits.items()}
    return shares | {f"{name}_consumer_ms": pace_ms for name, (pace_ms, _) in waits.items()}


if __name__ == "__main__":
    sys.exit(main())
