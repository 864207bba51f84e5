"""Loaders on crops that are not in memory: the files are dropped from the page cache before each turn."""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._loader.fio import Fio, find_fio
from benchmarks._loader.measure import MeasurePass, Pass, measure_epoch, ratios, steady_rate, take_turns
from benchmarks._loader.memory import forget_peak, memory_limit, peak_mib, resident_mib
from benchmarks._loader.page_cache import cached_share, drop_from_cache
from benchmarks._loader.peers import Peer, other_peers, relic_peer
from benchmarks._loader.storage import StorageReader
from benchmarks._shared.crops import Crops
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import ShardSet

SUFFIXES = ("raw", "jpg")
MODES: dict[str, dict[str, Any]] = {"": {}, "direct": {"direct": "on"}}
"""Name of a mode of relic's loader -> arguments of `ShardLoader`. The one without a name is what users get. The others
are measured on raw crops only: decoding bounds the encoded ones."""
LATER = "later"
"""Of relic's loader without a mode: after an epoch whose files were not dropped. A part of them is in the cache."""
_TURN, _TURN_SECONDS = 12_000, 3.0
"""Images of a turn, or those of this time. Short turns, because the rate of a drive changes."""
REFERENCES = ("fio", "direct")
"""The reads that loaders are compared to: those of fio, and without it those of threads of our own."""


class Consumer(NamedTuple):
    """`_TURN` raw crops, for a consumer that takes a fixed time per batch. Medians of several runs."""

    consumer_ms: float
    asked_images_per_second: float
    wait: float
    """The consumer's waiting after the first batch, as a share of its run."""
    before_mib: float
    """Resident memory of the process before the loader was made."""
    peak_mib: float
    ring_mib: float
    """The loader's ring of batches."""

    @property
    def beyond_ring_mib(self) -> float:
        """What the loader takes beside its ring."""
        return self.peak_mib - self.before_mib - self.ring_mib


class Cold(NamedTuple):
    """What `--cold` found."""

    rates: dict[str, float]
    """Name -> images per second, or reads per second of a reference."""
    cpu_us: dict[str, float]
    """Name -> microseconds of processor time per image."""
    ratios: dict[str, float]
    """Name of a loader / name of its reference -> ratio."""
    by_epoch: dict[str, list[float]]
    engine: str
    """fio's engine; empty without fio."""
    block_bytes: dict[str, int]
    """Encoding -> bytes of one read of the references."""
    direct: bool
    """Whether the references of our own read past the page cache."""
    still_cached: float | None
    """The largest share of a set's pages that stayed in memory when it was dropped. None: not known."""
    consumers: dict[str, Consumer]


def measure_cold(
    crops: Crops,
    *,
    batch_size: int,
    epochs: int,
    workers: int,
    consumer_ms: float,
    io_threads: int,
) -> Cold:
    """Measure relic's loader in each of its `MODES`, others, and the storage."""
    modes = {name: {**options, "io_threads": io_threads} for name, options in MODES.items()}
    sets = {"raw": crops.raw, "jpg": crops.jpg}
    dropped: list[float | None] = []
    # First, before other loaders leave memory that could be used again.
    consumers = {
        mode: _consumer(crops.raw, batch_size, consumer_ms / 1000, epochs, options) for mode, options in modes.items()
    }
    with ExitStack() as stack:
        readers = {suffix: StorageReader(sets[suffix], stack) for suffix in SUFFIXES}
        blocks = {suffix: reader.block_bytes for suffix, reader in readers.items()}
        fio = find_fio(crops.raw.tars, blocks["raw"])
        runs: dict[str, MeasurePass] = {}
        for suffix, shards in sets.items():
            runs |= _references(suffix, shards, readers[suffix], fio, blocks[suffix])
            usual = relic_peer(f"relic_{suffix}", shards, batch_size, stack, **modes[""])
            runs[usual.name] = _cold(usual, shards.tars, dropped)
            if suffix != "raw":
                continue
            for mode in filter(None, modes):
                peer = relic_peer(f"{usual.name}_{mode}", shards, batch_size, stack, **modes[mode])
                runs[peer.name] = _cold(peer, shards.tars, dropped)
            if memory_limit() is not None:
                runs[f"{usual.name}_{LATER}"] = _later(usual)
        loose = sorted(crops.loose.iterdir())
        files: dict[str, Sequence[Path]] = {
            "webdataset_npy": crops.raw.tars, "webdataset_jpg": crops.jpg.tars, "torch_folder": loose
        }  # fmt: skip
        for peer in other_peers(crops, batch_size, workers):
            runs[peer.name] = _cold(peer, files[peer.name], dropped)
        passes = take_turns(runs, epochs)
    rates = {name: steady_rate(made) for name, made in passes.items()}
    known = [share for share in dropped if share is not None]
    return Cold(
        rates=rates,
        cpu_us={name: _cpu_us(made) for name, made in passes.items()},
        ratios=ratios(passes, _pairs(passes)),
        by_epoch={name: [one.images_per_second for one in made] for name, made in passes.items()},
        engine=fio.engine if fio else "",
        block_bytes=blocks,
        direct=all(reader.direct for reader in readers.values()),
        still_cached=max(known) if len(known) == len(dropped) else None,
        consumers=consumers,
    )


def _references(
    suffix: str, shards: ShardSet, reader: StorageReader, fio: Fio | None, block: int
) -> dict[str, MeasurePass]:
    """As many reads as the set has samples: by fio, and by threads of our own."""

    def ours(number: int) -> Pass:
        drop_from_cache(shards.tars)
        return _turn(Peer(f"direct_{suffix}", reader.epoch), number)

    found: dict[str, MeasurePass] = {f"direct_{suffix}": ours}
    if fio is not None:
        command = fio
        found[f"fio_{suffix}"] = lambda _: command.read(shards.tars, block, min(_TURN, shards.num_samples))
    return found


def _cold(peer: Peer, files: Sequence[Path], dropped: list[float | None]) -> MeasurePass:
    """Measures a turn after the files were dropped. Adds to `dropped` the share of their pages that stayed.

    The first turn of relic's loader is a whole epoch, after which it has checked the hashes of all samples.
    """

    def run(number: int) -> Pass:
        drop_from_cache(files)
        dropped.append(cached_share(files[:: max(1, len(files) // 64)]))
        return measure_epoch(peer, number) if number == 0 and peer.times else _turn(peer, number)

    return run


def _later(peer: Peer) -> MeasurePass:
    """Measures a turn after an epoch, of which the page cache keeps what it can."""

    def run(number: int) -> Pass:
        measure_epoch(peer, number)
        return _turn(peer, number)

    return run


def _turn(peer: Peer, number: int) -> Pass:
    return measure_epoch(Peer(peer.name, lambda _: _first(peer.epoch(number)), peer.times), number)


def _first(batches: Iterable[Sized]) -> Iterator[Sized]:
    images, began = 0, time.perf_counter()
    for batch in batches:
        yield batch
        images += len(batch)
        if images >= _TURN or time.perf_counter() - began > _TURN_SECONDS:
            return


def _cpu_us(passes: Sequence[Pass]) -> float:
    return statistics.median(1e6 * one.cpu / one.images for one in passes[1:])


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Every loader of tars, and the reference that reads as many bytes at once."""
    names = list(names)
    reference = next(name for name in REFERENCES if f"{name}_raw" in names)
    found = []
    for name in names:
        loader, _, suffix = name.partition("_")
        if loader not in REFERENCES and suffix != "folder":
            found.append((name, f"{reference}_{'jpg' if suffix.startswith('jpg') else 'raw'}"))
    return found


def _consumer(
    shards: ShardSet, batch_size: int, consumer_seconds: float, epochs: int, options: Mapping[str, Any]
) -> Consumer:
    """Medians over `epochs` runs, each of a new loader and of dropped files."""
    made = [_consumed(shards, batch_size, consumer_seconds, epoch, options) for epoch in range(epochs)]
    return Consumer(*(statistics.median(column) for column in zip(*made, strict=True)))


def _consumed(
    shards: ShardSet, batch_size: int, consumer_seconds: float, epoch: int, options: Mapping[str, Any]
) -> Consumer:
    plan = itertools.islice(
        train_batches(epoch_order(shards.samples, 0, epoch), batch_size, 0, 1), max(2, _TURN // batch_size)
    )
    drop_from_cache(shards.tars)
    forget_peak()
    before = resident_mib()
    waited = 0.0
    with ShardLoader(shards, batch_size=batch_size, pin_memory=torch.cuda.is_available(), **options) as loader:
        coming = loader.batches(plan)
        next(coming)
        began = time.perf_counter()
        while True:
            time.sleep(consumer_seconds)
            asked = time.perf_counter()
            if next(coming, None) is None:
                break
            waited += time.perf_counter() - asked
        ring = loader.ring_bytes / (1 << 20)
        share = waited / (time.perf_counter() - began)
        asked_rate = batch_size / consumer_seconds if consumer_seconds else float("inf")
        return Consumer(1000 * consumer_seconds, asked_rate, share, before, peak_mib(), ring)
