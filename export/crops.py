"""Read crops of a shard set and fit them to the encoder's size. Shapes: crop_HWC uint8; x_CHW float32 in [0, 1]."""

from collections.abc import Iterator

import numpy as np

from relic.arrays import Floats, Pixels
from relic.loader.loader import ShardLoader
from relic.loader.order import Indices, epoch_order
from relic.shards.shard_set import ShardSet

_BATCH = 16


def evenly_spread(shards: ShardSet, count: int) -> Indices:
    """`count` sample numbers spread evenly over the split. They repeat where the split is smaller."""
    return np.linspace(0, shards.num_samples - 1, count).round().astype(np.int64)


def random_samples(shards: ShardSet, count: int) -> Indices:
    """`count` different sample numbers by a fixed seed, in the order of the shards. All if the split has fewer."""
    return np.sort(epoch_order(shards.samples, seed=0, epoch=0)[:count])


def read_crops(shards: ShardSet, samples: Indices) -> Iterator[Pixels]:
    """The crops of these samples, in order. Each is a copy."""
    with ShardLoader(shards, batch_size=_BATCH) as loader:
        for batch in loader.batches(samples[first : first + _BATCH] for first in range(0, len(samples), _BATCH)):
            for crop_HWC in batch.images.numpy():
                yield crop_HWC.copy()


def fit_to_size(crop_HWC: Pixels, height: int, width: int) -> Floats:
    """The centre of a crop as x (3, height, width). A crop that is too small is extended by mirroring."""
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), crop_HWC.shape, strict=False)]
    padded = np.pad(crop_HWC, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")
    top, left = ((have - wanted) // 2 for wanted, have in zip((height, width), padded.shape, strict=False))
    return (padded[top : top + height, left : left + width].transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
