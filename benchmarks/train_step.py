"""Compare a training step with a bare one, and time the loop around it: `python benchmarks/train_step.py`."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: same import root as `python -m benchmarks.train_step`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.errors import command
from relic.files import temporary_folder, write_json
from relic.options import Device

if TYPE_CHECKING:
    from relic.distributed import World
    from train.config import TrainConfig

PROG = "benchmarks/train_step.py"
_PHOTOGRAPHS = 40
_SLEEP_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class StepBenchmarkConfig:
    """Milliseconds of the trainer's RD step, plain and preconditioned, of a bare step with the same arithmetic, and of
    a step that reads each value.

    The kinds of step run in turns. Then the trainer's loop is timed, with the real loader and a step that sleeps 20 ms.
    """

    channels: str = "32,48"
    """Channels N,M of the codec."""
    batch_size: int = 4
    """224x224 crops per step."""
    rounds: int = 60
    """Steps of each kind."""
    loop_steps: int = 500
    """Steps of the loop."""
    device: Device = "cpu"
    """Where to train. On a GPU a step's time is until the device has done it, with --amp as the trainer has it."""
    json: Path | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        check_least(self, {"batch_size": 1, "rounds": 1, "loop_steps": 2})


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json."""
    config = parse(StepBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json)
    with temporary_folder() as folder:
        figures = _measure(config, folder)
    print(_table(figures), flush=True)
    if config.json is not None:
        from benchmarks._shared.machine import machine

        write_json(config.json, figures | {"settings": _settings(config), "machine": machine()})
    return 0


def _measure(config: StepBenchmarkConfig, folder: Path) -> dict[str, Any]:
    import torch

    from benchmarks._train_step.steps import loop_overhead_seconds
    from relic.distributed import join_world

    torch.set_num_threads(1)  # as torchrun sets it; a second thread would compete with the loader's for the cores
    training = _training_config(config, folder)
    with join_world(config.device, PROG) as world:
        seconds = _take_turns(training, world, config.rounds)
        loop_seconds, loop_steps = loop_overhead_seconds(training, world, _SLEEP_SECONDS)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    # Ratios of steps that follow each other, so that a slow period of the machine affects both.
    pairs = (("ours", "bare"), ("synchronous", "ours"), ("preconditioned", "ours"))
    quotients = {
        f"{one}/{other}": statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        for one, other in pairs
    }
    return {
        **{f"{name}_ms": 1000 * median for name, median in medians.items()},
        "ratios": quotients,
        "loop_overhead_ms": 1000 * loop_seconds,
        "loop_steps": loop_steps,
    }


def _training_config(config: StepBenchmarkConfig, folder: Path) -> "TrainConfig":
    """Flags of an RD run of one epoch on sample photographs."""
    from train.config import TrainConfig

    crops_per_image = -(-config.loop_steps * config.batch_size // _PHOTOGRAPHS)
    _pack(folder, crops_per_image)
    return TrainConfig(
        shards=str(folder / "train"), val_shards=str(folder / "val"), save_dir=folder / "run", recon_every=0,
        pretrained="none", channels=config.channels, replace_parts="all", loss_type="rd", epochs=1,
        batch_size=config.batch_size, device=config.device, precondition=False,
    )  # fmt: skip


def _pack(folder: Path, crops_per_image: int) -> None:
    from benchmarks._shared.crops import pack_samples

    pack = f"--coco_dir {folder}/coco --out_dir {folder}"
    crops = f"--include_val false --crop random --crops_per_image {crops_per_image}"
    pack_samples(
        f"--out {folder}/coco --train {_PHOTOGRAPHS} --val 4",
        f"{pack}/train {crops}",
        f"{pack}/val",
    )


def _take_turns(training: "TrainConfig", world: "World", rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each kind, on the same batches. The first two rounds are a warm-up, not included."""
    import itertools

    from benchmarks._gpu.timing import wait_for
    from benchmarks._train_step.steps import bare_step, our_step, synchronous_step
    from relic.codec.pixels import to_float
    from relic.loader.device_feed import DeviceBatch
    from relic.loader.loader import ShardLoader
    from relic.loader.order import epoch_order, train_batches
    from train.build import build_learner
    from train.plan import make_plan
    from train.start import load_start

    plain = make_plan(training)
    shards = plain.train_set
    preconditioned = make_plan(dataclasses.replace(training, precondition=True))
    ours, bare, synchronous, moved = (
        build_learner(plan, world, load_start(plan, world, None)) for plan in (plain, plain, plain, preconditioned)
    )
    steps = {
        "ours": our_step(ours, training, world),
        "bare": bare_step(bare, training),
        "synchronous": synchronous_step(synchronous, training),
        "preconditioned": our_step(moved, training, world),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    batches = itertools.cycle(train_batches(epoch_order(shards.samples, 0, 0), training.batch_size, 0, 1))
    with ShardLoader(shards, batch_size=training.batch_size) as loader:
        for number, batch in enumerate(loader.batches(itertools.islice(batches, rounds + 2))):
            for name, step in steps.items():
                wait_for(world.device)
                began = time.perf_counter()
                step(DeviceBatch(to_float(batch.images.to(world.device)), batch.keys))
                wait_for(world.device)
                if number >= 2:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def _table(figures: Mapping[str, Any]) -> str:
    names = {
        "ours": "the trainer's step",
        "bare": "forward, backward, one loss, clip, step",
        "synchronous": "the loss twice, values read each step",
        "preconditioned": "the trainer's step with --precondition",
    }
    from benchmarks._shared.ratios import ratio_table
    from relic.columns import in_columns

    steps = [(title, f"{figures[f'{name}_ms']:.1f} ms") for name, title in names.items()]
    around = f"the loop around a step, mean of {figures['loop_steps']:,}: {figures['loop_overhead_ms']:.3f} ms"
    return "\n\n".join([in_columns(steps), ratio_table(figures["ratios"], 3), around])


def _settings(config: StepBenchmarkConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "json"}


if __name__ == "__main__":
    sys.exit(main())
