"""Compare the loader with others, or tell what limits your own shards: `python benchmarks/loader.py`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: same import root as `python -m benchmarks.loader`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._loader.config import LoaderBenchmarkConfig
from benchmarks._loader.planning import LoaderPlan, make_plan
from relic.cli import parse
from relic.errors import command
from relic.files import temporary_folder, write_json
from relic.shards.shard_set import ShardSet

PROG = "benchmarks/loader.py"
_LIMITED = "RELIC_BENCHMARK_LIMITED"
"""Set in the environment of the run that systemd limits, so that it does not start another."""


class LoaderOutcome(NamedTuple):
    """Figures for --json, and the table for --markdown."""

    figures: dict[str, Any]
    markdown: str = ""


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json, the table to --markdown and the chart to --plot."""
    config = parse(LoaderBenchmarkConfig, argv, prog=PROG)
    plan = make_plan(config, may_limit=_LIMITED not in os.environ)
    if plan.limiting_command:
        return _run_limited(plan.limiting_command, argv)
    with ExitStack() as stack:
        if plan.shards is not None:
            outcome = _own_set(plan, plan.shards)
        else:
            folder = config.work_dir or stack.enter_context(temporary_folder())
            measure = _cold if config.cold else _wait if config.wait else _compare
            outcome = measure(plan, folder)
    if config.markdown is not None:
        config.markdown.write_text(outcome.markdown + "\n")
    if config.json is not None:
        from benchmarks._shared.machine import machine

        write_json(config.json, outcome.figures | {"machine": machine()})
    return 0


def _run_limited(words: Sequence[str], argv: Sequence[str] | None) -> int:
    """Run this command again, with a memory limit."""
    flags = sys.argv[1:] if argv is None else list(argv)
    whole = [*words, sys.executable, str(Path(__file__).resolve()), *flags]
    return subprocess.run(whole, env={**os.environ, _LIMITED: "1"}, check=False).returncode


def _compare(plan: LoaderPlan, folder: Path) -> LoaderOutcome:
    from benchmarks._loader.measure import ratios, runs_of, steady_rate, take_turns, time_shares
    from benchmarks._loader.peers import all_peers
    from benchmarks._loader.tables import comparison_details, comparison_table
    from benchmarks._shared.crops import prepare_crops

    config = plan.config
    crops = prepare_crops(folder, config.images, config.packed_crops, plan.threads)
    with ExitStack() as stack:
        peers = all_peers(crops, config.batch_size, plan.threads, stack)
        passes = take_turns(runs_of(peers), config.epochs)
    figures = {name: steady_rate(made) for name, made in passes.items()}
    quotients = ratios(passes)
    shares = {peer.name: time_shares(passes[peer.name][1:], plan.threads) for peer in peers if peer.times}
    what = f"{crops.raw.num_samples:,} crops of 224x224, batches of {config.batch_size}"
    table = comparison_table(what, figures, quotients, crops.raw, plan.threads)
    print(comparison_details(figures, passes, quotients, shares), f"\n{table}", sep="\n", flush=True)
    if config.plot is not None:
        from benchmarks._loader.plot import plot_comparison

        plot_comparison(config.plot, figures, f"{what}, cores: {plan.threads}", table)
    by_epoch = {name: [one.images_per_second for one in made] for name, made in passes.items()}
    settings = {"crops": crops.raw.num_samples, "batch_size": config.batch_size, "epochs": config.epochs}
    shares_by_name = {name: one._asdict() for name, one in shares.items()}
    found = {**figures, "ratios": quotients, "by_epoch": by_epoch, "shares": shares_by_name, "settings": settings}
    return LoaderOutcome(found, table)


def _cold(plan: LoaderPlan, folder: Path) -> LoaderOutcome:
    from benchmarks._loader.cold import measure_cold
    from benchmarks._loader.memory import memory_limit
    from benchmarks._loader.tables import cold_table
    from benchmarks._shared.crops import prepare_crops

    config = plan.config
    crops = prepare_crops(folder, config.images, config.packed_crops, plan.threads, png=False)
    pace_ms = 20.0 if config.consumer_ms is None else config.consumer_ms
    cold = measure_cold(
        crops,
        batch_size=config.batch_size,
        epochs=config.epochs,
        workers=plan.threads,
        consumer_ms=pace_ms,
        io_threads=config.io_threads,
    )
    limit = memory_limit()
    table = cold_table(crops.raw, config.batch_size, cold, limit)
    print(table, flush=True)
    settings = {"crops": crops.raw.num_samples, "batch_size": config.batch_size, "epochs": config.epochs}
    consumers = {mode: one._asdict() for mode, one in cold.consumers.items()}
    found = cold._asdict() | {"consumers": consumers, "memory_limit": limit, "settings": settings}
    return LoaderOutcome(cold.rates | found, table)


def _own_set(plan: LoaderPlan, shards: ShardSet) -> LoaderOutcome:
    from benchmarks._loader.own_set import measure_own_set
    from benchmarks._loader.tables import own_set_table

    config = plan.config
    measured = measure_own_set(
        shards,
        plan.urls,
        batch_size=config.batch_size,
        rounds=config.epochs,
        seconds=config.seconds,
        threads=plan.threads,
        io_threads=config.io_threads,
    )
    table = own_set_table(shards, measured, config.gpu_images_per_second)
    print(table, flush=True)
    steady = measured.images_per_second or measured.first_images_per_second
    gpus = steady / config.gpu_images_per_second if config.gpu_images_per_second else None
    return LoaderOutcome(measured._asdict() | {"gpus": gpus}, table)


def _wait(plan: LoaderPlan, folder: Path) -> LoaderOutcome:
    from benchmarks._loader.measure import consumer_wait
    from benchmarks._loader.tables import wait_table
    from benchmarks._shared.crops import prepare_crops

    config = plan.config
    crops = prepare_crops(folder, config.images, config.packed_crops, plan.threads, png=False)
    waits = {}
    for name, shards, usual_ms in (("relic_raw", crops.raw, 20.0), ("relic_jpg", crops.jpg, 30.0)):
        pace_ms = usual_ms if config.consumer_ms is None else config.consumer_ms
        waits[name] = pace_ms, consumer_wait(shards, config.batch_size, pace_ms / 1000, config.wait_batches)
    print(wait_table(waits, config.wait_batches), flush=True)
    shares = {f"{name}_wait": share for name, (_, share) in waits.items()}
    return LoaderOutcome(shares | {f"{name}_consumer_ms": pace_ms for name, (pace_ms, _) in waits.items()})


if __name__ == "__main__":
    sys.exit(main())
