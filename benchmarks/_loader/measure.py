"""Measure images per second of several loaders in turns, epoch by epoch, and how long a slow consumer waits."""

import functools
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from benchmarks._loader.peers import Peer
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import ShardSet

RATIOS = (
    ("relic_raw", "copy_ceiling"),
    ("relic_raw", "read_ceiling"),
    ("relic_raw", "webdataset_npy"),
    ("relic_raw", "torch_folder"),
    ("relic_jpg", "decode_ceiling"),
    ("relic_jpg", "webdataset_jpg"),
    ("relic_jpg", "torch_folder"),
    ("relic_png", "decode_ceiling_png"),
    ("relic_png", "torch_folder"),
    ("read_ceiling", "copy_ceiling"),
    ("copy_ceiling", "block_ceiling"),
    ("block_ceiling", "block_ceiling_1"),
)


class Pass(NamedTuple):
    """One epoch: images, seconds, and the loader's own seconds. `read` and `decode` are sums over its threads."""

    images: int
    seconds: float
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    cpu: float = 0.0
    """Processor seconds of this process and of the worker processes that ended."""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Shares(NamedTuple):
    """How relic's loader spends its time after the first epoch."""

    read: float
    """Reading and hashing, as a share of the time of all threads."""
    decode: float
    """Decoding, as a share of the time of all threads."""
    wait: float
    """Waiting by the consumer, as a share of the run."""


MeasurePass = Callable[[int], Pass]
"""Measures the epoch of a number."""


def take_turns(runs: Mapping[str, MeasurePass], epochs: int) -> dict[str, list[Pass]]:
    """Epoch 0 of every loader, then epoch 1 of every loader, ... So a change in speed affects all loaders."""
    passes: dict[str, list[Pass]] = {name: [] for name in runs}
    for epoch in range(epochs):
        for name, run in runs.items():
            passes[name].append(run(epoch))
    return passes


def runs_of(peers: Sequence[Peer]) -> dict[str, MeasurePass]:
    """For each loader, the measurement of one of its epochs."""
    return {peer.name: functools.partial(measure_epoch, peer) for peer in peers}


def measure_epoch(peer: Peer, epoch: int) -> Pass:
    """One epoch, by a consumer that does nothing."""
    times = peer.times
    before = (times.read, times.decode, times.wait) if times else (0.0, 0.0, 0.0)
    cpu, began = _cpu_seconds(), time.perf_counter()
    images = sum(len(batch) for batch in peer.epoch(epoch))
    seconds = time.perf_counter() - began
    after = (times.read, times.decode, times.wait) if times else before
    read, decode, wait = (end - start for start, end in zip(before, after, strict=True))
    return Pass(images, seconds, read, decode, wait, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def steady_rate(passes: Sequence[Pass]) -> float:
    """Images per second: the median over the epochs after the first."""
    return statistics.median(one.images_per_second for one in passes[1:])


def ratios(passes: Mapping[str, Sequence[Pass]], pairs: Iterable[tuple[str, str]] = RATIOS) -> dict[str, float]:
    """Name, for example `relic_raw/copy_ceiling` -> ratio of their rates: the median over the epochs after the first.

    Each ratio is of two epochs of the same number, one after the other: a slow period of the machine affects both.
    """
    return {
        f"{ours}/{theirs}": statistics.median(
            one.images_per_second / other.images_per_second
            for one, other in zip(passes[ours][1:], passes[theirs][1:], strict=True)
        )
        for ours, theirs in pairs
    }


def time_shares(passes: Sequence[Pass], threads: int) -> Shares:
    """How the loader spent the time of these epochs."""
    seconds = sum(one.seconds for one in passes)
    read, decode, wait = (sum(column) for column in zip(*(one[2:5] for one in passes), strict=True))
    return Shares(read / (seconds * threads), decode / (seconds * threads), wait / seconds)


def consumer_wait(shards: ShardSet, batch_size: int, consumer_seconds: float, batches: int) -> float:
    """The share of a run of `batches` batches that a consumer waits, if it sleeps `consumer_seconds` per batch.

    Measured from the first batch on. The epochs are in one plan, without a pause, so a small set gives the same result
    as a large one.
    """
    plan = itertools.chain.from_iterable(
        train_batches(epoch_order(shards.samples, 0, epoch), batch_size, 0, 1) for epoch in itertools.count()
    )
    waited = 0.0
    with ShardLoader(shards, batch_size=batch_size, pin_memory=torch.cuda.is_available()) as loader:
        coming = loader.batches(plan)
        next(coming)
        began = time.perf_counter()
        for _ in range(batches):
            time.sleep(consumer_seconds)
            asked = time.perf_counter()
            next(coming)
            waited += time.perf_counter() - asked
        return waited / (time.perf_counter() - began)
