"""What a run of the loader benchmark will do: its flags, and the files that they name. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks._loader.config import LoaderBenchmarkConfig
from benchmarks._loader.memory import limiting_command, memory_limit
from benchmarks._loader.network import STREAMS
from benchmarks._shared.crops import images_in
from benchmarks._shared.flags import check_files
from relic.errors import InputError, before_work
from relic.files import check_folder
from relic.machine import available_cores
from relic.shards.shard_set import ShardSet, open_tars
from relic.storage.cache import fetch_shards
from relic.storage.spec import parse_spec, resolve_shards, tars_of_split

_CROP_BYTES = 224 * 224 * 3
_TIMES_MEMORY = 3
"""A set of --cold is at least so many times as large as the memory, where that can be arranged."""
_LEAST_LIMIT = 2 << 30
"""Memory that the loaders of --cold need: webdataset holds a thousand crops in each worker."""


@dataclass(frozen=True, kw_only=True)
class LoaderPlan:
    """The flags, and what was found."""

    config: LoaderBenchmarkConfig
    shards: ShardSet | None
    """The set of --shards. Of one at URLs, the first shards, which are in the cache now."""
    urls: tuple[str, ...]
    """Those shards' URLs."""
    threads: int
    """Threads of the ceilings and workers of the other loaders: one per core, as relic's loader has them."""
    limiting_command: tuple[str, ...]
    """Words before a command that limit its memory, for --cold. Empty: it is limited already, or cannot be."""


def make_plan(config: LoaderBenchmarkConfig, *, may_limit: bool = True) -> LoaderPlan:
    """Check the files, and open the user's own shards. `may_limit`: whether --cold may start under a memory limit.

    Raises RefusedError for what is missing or does not fit.
    """
    check_files(json=config.json, markdown=config.markdown, plot=config.plot)
    with before_work():
        if config.work_dir is not None:
            check_folder("--work_dir", config.work_dir)
        if config.images is not None:
            images_in(config.images)
        shards, urls = (None, ()) if config.shards is None else _own_set(config, config.shards)
    words = _limiting_command(config) if config.cold and may_limit else ()
    return LoaderPlan(config=config, shards=shards, urls=urls, threads=available_cores(), limiting_command=words)


def _own_set(config: LoaderBenchmarkConfig, named: str) -> tuple[ShardSet, tuple[str, ...]]:
    spec = parse_spec(named)
    urls: tuple[str, ...] = ()
    if spec.is_remote:
        urls = tuple(tars_of_split(spec, config.split)[:STREAMS])
        if not urls:
            raise InputError(f"--shards {spec.shown}: names no {config.split} shard")
        shards = open_tars(fetch_shards(urls, config.split), config.split, Path(spec.shown))
    else:
        shards = resolve_shards(named, config.split)
    if shards.num_samples < config.batch_size:
        few = f"{spec.shown} has only {shards.num_samples} {config.split} samples"
        raise InputError(f"--batch_size {config.batch_size}: {few}")
    return shards, urls


def _limiting_command(config: LoaderBenchmarkConfig) -> tuple[str, ...]:
    wanted = max(_LEAST_LIMIT, config.packed_crops * _CROP_BYTES // _TIMES_MEMORY)
    limit = memory_limit()
    if limit is not None and limit <= wanted:
        return ()
    return tuple(limiting_command(wanted) or ())
