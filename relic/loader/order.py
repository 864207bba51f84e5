"""Which samples make up which batch: pure functions of their arguments.

Threads, restarts and numpy's version change nothing. Random words come from Philox, a counter-based generator whose raw
stream numpy keeps stable. A stable argsort of the words is the order.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from relic.errors import InputError

Indices = npt.NDArray[np.signedinteger[Any]]
_BUCKET = 1 << 20
"""Samples sorted at once. Memory stays near that of words and result, and each sort fits the processor's cache."""
ORDER_BYTES = 15
"""Memory per sample while a group is shuffled: a word of 8 bytes, 4 of the order, 3 of the buckets."""


class EpochOrder:
    """The order of an epoch: sample numbers, counted through all shards. `len` of it, and slices of it as arrays.

    Groups of samples follow each other. Each is made when a slice needs it, and the last one is kept. So an order takes
    the memory of one group, and any slice of it the time of its groups.
    """

    def __init__(self, sizes: npt.ArrayLike, make_group: Callable[[int], Indices]) -> None:
        """`sizes`: samples per group. `make_group` returns the samples of a group by its number."""
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._group = functools.lru_cache(maxsize=1)(make_group)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, wanted: slice) -> Indices:
        start, stop, step = wanted.indices(len(self))
        assert step == 1
        return np.concatenate([np.empty(0, np.int32), *self.parts(start, stop)])

    def parts(self, start: int, stop: int) -> list[Indices]:
        """The samples from place `start` to `stop`, one array per group."""
        found: list[Indices] = []
        while start < stop:
            number = int(np.searchsorted(self._ends, start, "right"))
            group, end = self._group(number), int(self._ends[number])
            found.append(group[start - end + len(group) : stop - end + len(group)])
            start = end
        return found


def epoch_order(samples: Sequence[int], seed: int, epoch: int, window: int = 0) -> EpochOrder:
    """The order of an epoch.

    `samples`: samples per shard. `window`: how many shards are mixed, and so open, at once. 0 mixes all: a global
    shuffle, which is one group. With a window the shards are shuffled first, and then mixed in groups of `window`.
    """
    if not window or window >= len(samples):
        return EpochOrder([sum(samples)], lambda _: _shuffled(sum(samples), seed, epoch, 0))
    starts = np.cumsum([0, *samples])
    shards = _shuffled(len(samples), seed, epoch, 0)

    def make_group(number: int) -> Indices:
        first = number * window
        group = np.concatenate([np.arange(*starts[shard : shard + 2]) for shard in shards[first : first + window]])
        shuffled: Indices = group[_shuffled(len(group), seed, epoch, first + 1)]
        return shuffled

    return EpochOrder(np.add.reduceat(np.diff(starts)[shards], np.arange(0, len(shards), window)), make_group)


def _shuffled(count: int, seed: int, epoch: int, stream: int) -> Indices:
    """The stable argsort of `count` words, sorted per bucket of their highest bits. int32 where that is enough."""
    words = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]).random_raw(count)
    if count <= _BUCKET:
        return _argsort(words)
    bits = (count // _BUCKET).bit_length()
    highest = words.astype("<u8", copy=False).view("<u2")[3::4] >> (16 - bits)
    order: Indices = np.empty(count, np.int32 if count < 2**31 else np.int64)
    filled = 0
    for bucket in range(1 << bits):
        members = np.flatnonzero(highest == bucket)
        order[filled : filled + len(members)] = members[_argsort(words[members])]
        filled += len(members)
    return order


def _argsort(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.argsort(words, kind="stable")
    return order


def train_batches(
    order: EpochOrder, images_per_step: int, rank: int, world_size: int, start_images: int = 0
) -> Iterator[Indices]:
    """This rank's rows of every global batch from image `start_images` on.

    Global batch b holds the same samples at any world size. Every rank gets the same number of batches, and the same
    number of rows in each. Samples at the end of the order that fill no batch are dropped. Raises InputError when there
    are fewer samples than one batch holds, and when `world_size` does not divide a batch.

    One rank alone gets the rows as they are in the order. Several ranks get them by shard (`_by_shard`).
    """
    check_divides(images_per_step, world_size)
    if len(order) < images_per_step:
        raise InputError(f"--batch_size {images_per_step}: the train shards hold only {len(order)} samples")
    per_rank = images_per_step // world_size

    def rows(first: int) -> Indices:
        if world_size == 1:
            return order[first : first + images_per_step]
        return _by_shard(order.parts(first, first + images_per_step))[rank * per_rank : (rank + 1) * per_rank]

    begun = start_images // images_per_step * images_per_step
    return map(rows, range(begun, len(order) - images_per_step + 1, images_per_step))


def _by_shard(parts: Sequence[Indices]) -> Indices:
    """The rows of a batch so that each rank's piece of them is of few shards: the same ones in all batches of a group.

    A shard's samples are numbered in a row, so the rows are sorted by number. Those of two groups are mixed evenly:
    each rank gets its share of both. Consecutive ranks read neighbouring shards. torchrun numbers the ranks of a
    machine so. With a global shuffle a rank always reads the same part of the set.
    """
    places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    rows: Indices = np.concatenate([np.sort(part) for part in parts])[np.argsort(places, kind="stable")]
    return rows


def check_divides(images_per_step: int, world_size: int) -> None:
    """Raise InputError, with the nearest numbers that go together, unless `world_size` divides a batch."""
    if images_per_step % world_size == 0:
        return
    below = images_per_step // world_size * world_size
    sizes = " or ".join(str(size) for size in (below, below + world_size) if size)
    fewer = next(count for count in range(world_size, 0, -1) if images_per_step % count == 0)
    more = next((count for count in range(world_size, images_per_step + 1) if images_per_step % count == 0), None)
    counts = f"{fewer} or {more}" if more else f"at most {fewer}"
    raise InputError(
        f"--batch_size {images_per_step}: not divisible by the {world_size} processes that share it; "
        f"use --batch_size {sizes}, or {counts} processes"
    )


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[Indices]:
    """Yield this rank's batches, in order: over all ranks every sample exactly once. None is padded or dropped.

    Ranks differ by at most one sample. With more ranks than samples some ranks get no batch.
    """
    share, extra = divmod(num_samples, world_size)
    first = rank * share + min(rank, extra)
    stop = first + share + (rank < extra)
    for start in range(first, stop, batch_size):
        yield np.arange(start, min(start + batch_size, stop))
