"""The train crops that a codec is calibrated on: of different images, and some of them held out."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, cat

from relic.loader.loader import ShardLoader
from relic.loader.order import Indices, epoch_order
from relic.shards.shard_set import ShardSet
from relic.shards.sources import sources_of
from train.plan import TrainPlan

_LOOKED_AT = 8
"""Crops whose source is looked up, for each crop that is wanted. Crops of other images are preferred among them."""


class CalibrationCrops(NamedTuple):
    """uint8 crops (B, H, W, 3)."""

    images: Tensor
    num_held_out: int
    """The first ones choose k and the ridge. If there are crops of several images, none is of an image of the rest."""
    num_sources: int


class _Chosen(NamedTuple):
    samples: Indices
    num_held_out: int
    num_sources: int


def calibration_crops(plan: TrainPlan) -> CalibrationCrops:
    """Read `plan.calib_images` crops from the beginning of the first epoch, of as many images as are found there."""
    config, train_set = plan.config, plan.train_set
    order = epoch_order(train_set.samples, config.seed, 0, config.shuffle_window)
    chosen = _choose(train_set, order[: _LOOKED_AT * plan.calib_images], plan.calib_images)
    with ShardLoader(
        train_set,
        batch_size=16,
        threads=config.decode_threads,
        io_threads=config.io_threads,
        direct=config.direct,
        verify=config.verify,
    ) as loader:
        batches = (chosen.samples[first : first + 16] for first in range(0, len(chosen.samples), 16))
        images = cat([batch.images.clone() for batch in loader.batches(batches)])
    return CalibrationCrops(images, chosen.num_held_out, chosen.num_sources)


def _choose(shards: ShardSet, order: Indices, count: int) -> _Chosen:
    """Choose `count` of the samples in `order`. It looks at no more of them than it needs."""
    sources: list[str] = []
    while len(sources) < len(order) and len(set(sources)) < count:
        block = order[len(sources) : len(sources) + count]
        sources += sources_of(shards, block.tolist())
    places = different_first(sources)[:count]
    held_out, rest = split_by_source([sources[place] for place in places])
    picked = np.array(places)[held_out + rest]
    return _Chosen(order[picked], len(held_out), len({sources[place] for place in places}))


def different_first(sources: Sequence[str]) -> list[int]:
    """The places of `sources`: the first crop of each image, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    rounds = []
    for source in sources:
        rounds.append(seen[source])
        seen[source] += 1
    return sorted(range(len(sources)), key=rounds.__getitem__)


def split_by_source(sources: Sequence[str]) -> tuple[list[int], list[int]]:
    """Places to hold out, about a quarter, and the rest. No image is in both, unless there is only one.

    Images with few crops are held out first, so that the quarter is exceeded by as little as possible.
    """
    quarter = len(sources) // 4
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, source in enumerate(sources):
        places[source].append(place)
    groups = sorted(places.values(), key=len)
    held_out: list[int] = [] if len(groups) > 1 else groups[0][:quarter]
    for group in groups[:-1]:
        if len(held_out) < quarter:
            held_out += group
    return held_out, sorted(set(range(len(sources))) - set(held_out))
