"""Images per second, epoch by epoch, the loaders taking turns; and how long a slow consumer waits."""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks._loader.peers import Peer
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import ShardSet

RATIOS = (
    ("relic_raw", "copy_ceiling"),
    ("relic_raw", "webdataset_npy"),
    ("relic_raw", "torch_folder"),
    ("relic_jpg", "decode_ceiling"),
    ("relic_jpg", "webdataset_jpg"),
    ("relic_jpg", "torch_folder"),
)


class Pass(NamedTuple):
    """One epoch: images delivered, seconds it took, and of these the loader's (read and decode: threads summed)."""

    images: int
    seconds: float
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Shares(NamedTuple):
    """Where relic's time goes after the first epoch."""

    read: float
    """Of all threads' time: reading and hashing."""
    decode: float
    """Of all threads' time."""
    wait: float
    """Of the run: the consumer's wait."""


def take_turns(peers: Sequence[Peer], epochs: int) -> dict[str, list[Pass]]:
    """Every loader's epoch 0, then every loader's epoch 1, ...: a change in the machine's speed affects all alike."""
    passes: dict[str, list[Pass]] = {peer.name: [] for peer in peers}
    for epoch in range(epochs):
        for peer in peers:
            passes[peer.name].append(_measure(peer, epoch))
    return passes


def _measure(peer: Peer, epoch: int) -> Pass:
    times = peer.times
    before = (times.read, times.decode, times.wait) if times else ()
    began = time.perf_counter()
    images = sum(len(batch) for batch in peer.epoch(epoch))
    seconds = time.perf_counter() - began
    after = (times.read, times.decode, times.wait) if times else ()
    return Pass(images, seconds, *(end - start for start, end in zip(before, after, strict=True)))


def steady_rate(passes: Sequence[Pass]) -> float:
    """Images per second: the median of the epochs after the first."""
    return statistics.median(one.images_per_second for one in passes[1:])


def ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """`relic_raw/copy_ceiling` and the others, from the figures by name."""
    return {f"{ours}/{theirs}": figures[ours] / figures[theirs] for ours, theirs in RATIOS}


def time_shares(passes: Sequence[Pass], threads: int) -> Shares:
    """Shares of the time of these epochs."""
    seconds = sum(one.seconds for one in passes)
    read, decode, wait = (sum(column) for column in zip(*(one[2:] for one in passes), strict=True))
    return Shares(read / (seconds * threads), decode / (seconds * threads), wait / seconds)


def consumer_wait(shards: ShardSet, batch_size: int, consumer_seconds: float, batches: int) -> float:
    """The wait of a consumer that sleeps `consumer_seconds` per batch, as a share of the run over `batches` batches.

    Counted from the first batch on. Epochs follow each other in one plan, so a small set stands for a large one.
    """
    plan = itertools.chain.from_iterable(
        train_batches(epoch_order(shards.samples, 0, epoch), batch_size, 0, 1) for epoch in itertools.count()
    )
    waited = 0.0
    with ShardLoader(shards, batch_size=batch_size) as loader:
        coming = loader.batches(plan)
        next(coming)
        began = time.perf_counter()
        for _ in range(batches):
            time.sleep(consumer_seconds)
            asked = time.perf_counter()
            next(coming)
            waited += time.perf_counter() - asked
        return waited / (time.perf_counter() - began)
