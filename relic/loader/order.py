"""Which samples make up which batch: pure functions of their arguments, nothing else.

Not of threads, ranks, restarts or numpy's version: random words come from Philox (a counter-based generator whose raw
stream numpy keeps stable) and are turned into an order by a stable argsort.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from relic.errors import InputError

Indices = npt.NDArray[np.int64]


def epoch_order(samples: Sequence[int], seed: int, epoch: int, window: int = 0) -> Indices:
    """The order of an epoch: sample numbers, counted through all shards.

    `samples`: samples of each shard. `window`: how many shards are mixed, and so open, at once; 0 mixes all (a true
    global shuffle). With a window the shards are shuffled first and then mixed in groups of `window`.
    """
    if not window or window >= len(samples):
        return _shuffled(np.arange(sum(samples)), seed, epoch, 0)
    starts = np.cumsum([0, *samples])
    shards = _shuffled(np.arange(len(samples)), seed, epoch, 0)
    groups = []
    for first in range(0, len(shards), window):
        members = [np.arange(starts[shard], starts[shard + 1]) for shard in shards[first : first + window]]
        groups.append(_shuffled(np.concatenate(members), seed, epoch, first + 1))
    return np.concatenate(groups)


def _shuffled(values: Indices, seed: int, epoch: int, stream: int) -> Indices:
    words = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]).random_raw(len(values))
    return values[np.argsort(words, kind="stable")]


def train_batches(order: Indices, images_per_step: int, rank: int, world_size: int, start_images: int = 0) -> Indices:
    """This rank's rows of every global batch from image `start_images` on: (batches, images_per_step / world_size).

    Global batch b holds the same images at any world size, and every rank gets the same number of batches; what is
    left at the end of the order and fills no batch is dropped. Raises InputError for fewer samples than one batch, and
    for a batch that the ranks do not divide.
    """
    if images_per_step % world_size:
        raise InputError(f"--batch_size {images_per_step}: not divisible by the {world_size} processes it is shared by")
    if len(order) < images_per_step:
        raise InputError(f"--batch_size {images_per_step}: the train shards hold only {len(order)} samples")
    per_rank = images_per_step // world_size
    batches = order[: len(order) // images_per_step * images_per_step].reshape(-1, images_per_step)
    return batches[start_images // images_per_step :, rank * per_rank : (rank + 1) * per_rank]


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[Indices]:
    """This rank's batches of every sample exactly once over all ranks, in order; none padded, none dropped.

    Ranks differ by at most one sample; with more ranks than samples some get no batch.
    """
    mine = np.array_split(np.arange(num_samples), world_size)[rank]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
