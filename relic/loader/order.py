"""Which samples make up which batch: pure functions of their arguments.

Threads, restarts and numpy's version change nothing. Random words come from Philox, a counter-based generator whose raw
stream numpy keeps stable. A stable argsort of the words is the order.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from relic.errors import InputError

Indices = npt.NDArray[np.signedinteger[Any]]
_BUCKET = 1 << 20
"""Samples sorted at once. Memory stays near that of words and result, and each sort fits the processor's cache."""


def epoch_order(samples: Sequence[int], seed: int, epoch: int, window: int = 0) -> Indices:
    """The order of an epoch: sample numbers, counted through all shards.

    `samples`: samples per shard. `window`: how many shards are mixed, and so open, at once. 0 mixes all: a global
    shuffle. With a window the shards are shuffled first, and then mixed in groups of `window`.
    """
    if not window or window >= len(samples):
        return _shuffled(sum(samples), seed, epoch, 0)
    starts = np.cumsum([0, *samples])
    shards = _shuffled(len(samples), seed, epoch, 0)
    groups: list[Indices] = []
    for first in range(0, len(shards), window):
        members: list[Indices] = [
            np.arange(starts[shard], starts[shard + 1]) for shard in shards[first : first + window]
        ]
        group = np.concatenate(members)
        groups.append(group[_shuffled(len(group), seed, epoch, first + 1)])
    return np.concatenate(groups)


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


def train_batches(order: Indices, images_per_step: int, rank: int, world_size: int, start_images: int = 0) -> Indices:
    """This rank's rows of every global batch from image `start_images` on: (batches, images_per_step / world_size).

    Global batch b holds the same samples at any world size. Every rank gets the same number of batches. Samples at the
    end of the order that fill no batch are dropped. Raises InputError when there are fewer samples than one batch
    holds, and when `world_size` does not divide a batch.
    """
    if images_per_step % world_size:
        raise InputError(f"--batch_size {images_per_step}: not divisible by the {world_size} processes that share it")
    if len(order) < images_per_step:
        raise InputError(f"--batch_size {images_per_step}: the train shards hold only {len(order)} samples")
    per_rank = images_per_step // world_size
    batches = order[: len(order) // images_per_step * images_per_step].reshape(-1, images_per_step)
    return batches[start_images // images_per_step :, rank * per_rank : (rank + 1) * per_rank]


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[Indices]:
    """Yield this rank's batches, in order: over all ranks every sample exactly once. None is padded or dropped.

    Ranks differ by at most one sample. With more ranks than samples some ranks get no batch.
    """
    share, extra = divmod(num_samples, world_size)
    first = rank * share + min(rank, extra)
    stop = first + share + (rank < extra)
    for start in range(first, stop, batch_size):
        yield np.arange(start, min(start + batch_size, stop))
