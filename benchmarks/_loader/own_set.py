"""What limits the loading of a user's own shards: network, disk, cores, or the copy to the device."""

import itertools
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np
import torch

from benchmarks._loader.ceilings import block_ceiling, copy_ceiling, decode_ceiling
from benchmarks._loader.network import network_rate
from benchmarks._loader.page_cache import drop_from_cache
from benchmarks._loader.storage import StorageReader
from relic.loader.loader import ShardLoader
from relic.loader.order import Indices, epoch_order, train_batches
from relic.loader.reading import plan_reading
from relic.machine import available_memory
from relic.options import Direct
from relic.shards.index import read_records
from relic.shards.shard_set import ShardSet

SizedEpoch = Callable[[int], Iterable[Sized]]
_MOST_SHARDS = 512
"""More are not opened: a random part of a large set is as fast as all of it."""
_MOST_BYTES = 256 << 20
"""Of samples that are decoded from memory: more than the caches of a processor hold."""
_REPEATS = 100
"""Times that those samples are read or decoded, unless the time is over before."""
_COLD = ("disk", "first")
"""What reads from storage: the shards are dropped from the page cache before it."""
_COPIES = 16
"""Copies to a device that are begun together."""


class OwnSet(NamedTuple):
    """Images per second of each part of the way, measured alone, and of the loader as a whole."""

    network: float | None
    """Fetching shards from their URLs. None: the set is on disk."""
    ceilings: dict[str, float]
    """`disk`, `cores`, `feed` -> images per second."""
    reading: str
    """How the loader reads the set."""
    direct: bool
    """Whether the disk was read past the page cache."""
    device: str
    first_images_per_second: float
    """The loader in the first epoch: from storage, checking hashes."""
    first_bound_by: str
    """The part with the smallest rate."""
    images_per_second: float | None
    """The loader in later epochs, from memory. None: the set does not fit in the available memory."""
    bound_by: str
    """The same without the disk. For a set that does not fit: as in the first epoch."""
    set_bytes: int
    available_bytes: int


def measure_own_set(
    shards: ShardSet,
    urls: Sequence[str],
    *,
    batch_size: int,
    rounds: int,
    seconds: float,
    threads: int,
    io_threads: int,
) -> OwnSet:
    """Measure every part for `seconds`, divided into `rounds` in which all take turns. Figures are medians.

    `urls`: of shards that are fetched again, to measure the network; empty for a set on disk. A slow network is
    measured in fewer rounds.
    """
    set_bytes, available = sum(shards.tar_bytes), available_memory()
    image_bytes = set_bytes / shards.num_samples
    reading = plan_reading(shards, "auto", io_threads, threads)
    fits = reading.cached == len(shards.tars)
    shards, whole = _some_shards(shards), shards
    # A part of a set that does not fit in memory might, and would be read in another way.
    direct: Direct = "auto" if fits or shards is whole else "on"
    chosen = _some_samples(shards)
    rates: dict[str, list[float]] = {}
    network: list[float] = []
    with ExitStack() as stack:
        loader = stack.enter_context(_loader(shards, batch_size, io_threads, direct))
        for _ in loader.batches(_batches(chosen, batch_size)):
            pass  # names a sample that is damaged, and brings all of them into memory
        reader = StorageReader(shards, stack)
        members = reader.payloads(chosen)
        bare = copy_ceiling if shards.encoding == "raw" else decode_ceiling
        parts: dict[str, SizedEpoch] = {
            "disk": reader.epoch,
            "cores": bare(shards, members, batch_size, threads, stack, _REPEATS),
            "feed": _feed_ceiling(shards, batch_size, threads, stack),
            "first": lambda number: _first_epoch(_loader(shards, batch_size, io_threads, direct), batch_size, number),
        }
        if fits:
            parts["later"] = lambda number: _images(loader, _again(chosen, batch_size, number))
        fetching = 0.0
        for number in range(rounds):
            for name, part in parts.items():
                if name in _COLD:
                    drop_from_cache(shards.tars)
                rates.setdefault(name, []).append(_rate(part(number), seconds / rounds))
            if urls and fetching < seconds:
                began = time.perf_counter()
                network.append(network_rate(urls) / image_bytes)
                fetching += time.perf_counter() - began
    found = {name: statistics.median(each) for name, each in rates.items()}
    first, later = found.pop("first"), found.pop("later", None)
    return OwnSet(
        network=statistics.median(network) if network else None,
        ceilings=found,
        reading=str(reading),
        direct=reader.direct,
        device="cuda" if _on_cuda() else "cpu",
        first_images_per_second=first,
        first_bound_by=min(found, key=found.__getitem__),
        images_per_second=later,
        bound_by=min((name for name in found if name not in _COLD or not fits), key=found.__getitem__),
        set_bytes=set_bytes,
        available_bytes=available,
    )


def _on_cuda() -> bool:
    return torch.cuda.is_available()


def _some_shards(shards: ShardSet) -> ShardSet:
    """All shards, or a random part of many."""
    count = len(shards.tars)
    if count <= _MOST_SHARDS:
        return shards
    chosen = sorted(np.random.default_rng(0).permutation(count)[:_MOST_SHARDS].tolist())
    return shards._replace(
        tars=tuple(shards.tars[number] for number in chosen),
        indexes=tuple(shards.indexes[number] for number in chosen),
        tar_bytes=tuple(shards.tar_bytes[number] for number in chosen),
        samples=tuple(shards.samples[number] for number in chosen),
        unchecked=tuple(shards.unchecked[number] for number in chosen) if shards.unchecked else (),
    )


def _some_samples(shards: ShardSet) -> Indices:
    """Numbers of random samples, together at most `_MOST_BYTES`, or all of a small set. At least one."""
    sizes = np.concatenate([read_records(index)["size"] for index in shards.indexes])
    order = np.random.default_rng(0).permutation(len(sizes))
    return order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), _MOST_BYTES, "right")))]


def _batches(samples: Indices, batch_size: int) -> Iterator[Indices]:
    for start in range(0, len(samples), batch_size):
        yield samples[start : start + batch_size]


def _again(samples: Indices, batch_size: int, seed: int) -> Iterator[Indices]:
    """The samples many times, each time in another order."""
    rng = np.random.default_rng(seed)
    return itertools.chain.from_iterable(_batches(rng.permutation(samples), batch_size) for _ in range(_REPEATS))


def _loader(shards: ShardSet, batch_size: int, io_threads: int, direct: Direct) -> ShardLoader:
    return ShardLoader(shards, batch_size=batch_size, io_threads=io_threads, direct=direct, pin_memory=_on_cuda())


def _first_epoch(loader: ShardLoader, batch_size: int, number: int) -> Iterator[Sized]:
    """A new loader's batches: it checks the hash of every sample."""
    plan = train_batches(epoch_order(loader.shards.samples, 0, number), batch_size, 0, 1)

    def batches() -> Iterator[Sized]:
        with loader:
            yield from _images(loader, plan)

    return batches()


def _images(loader: ShardLoader, plan: Iterable[Indices]) -> Iterator[Sized]:
    for batch in loader.batches(plan):
        yield batch.images


def _feed_ceiling(shards: ShardSet, batch_size: int, threads: int, stack: ExitStack) -> SizedEpoch:
    """Batches copied from pinned memory to the GPU; without one, crops copied in memory."""
    if not _on_cuda():
        return block_ceiling(shards, threads, stack)
    shape = (batch_size, shards.height, shards.width, 3)
    source = torch.zeros(shape, dtype=torch.uint8).pin_memory()
    target = torch.empty(shape, dtype=torch.uint8, device="cuda")

    def epoch(_: int) -> Iterator[Sized]:
        while True:
            for _ in range(_COPIES):
                target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            yield range(_COPIES * batch_size)

    return epoch


def _rate(batches: Iterable[Sized], seconds: float) -> float:
    """Images per second of all batches, or of those of the first `seconds`.

    Where it stops early, time and images count from the first batch on. Then what is read ahead at the end makes up for
    what was read ahead at the beginning.
    """
    counts: list[int] = []
    first = began = time.perf_counter()
    with closing(_closable(batches)) as coming:
        for batch in coming:
            counts.append(len(batch))
            now = time.perf_counter()
            if len(counts) == 1:
                first = now
            elif now - first > seconds:
                return sum(counts[1:]) / (now - first)
    return sum(counts) / (time.perf_counter() - began)


def _closable(batches: Iterable[Sized]) -> Generator[Sized, None, None]:
    yield from batches
