"""Measure the loader on a user's own shards."""

import os
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks._loader.measure import Pass, Shares, steady_rate, take_turns, time_shares
from benchmarks._loader.peers import relic_peer
from relic.machine import available_cores
from relic.shards.shard_set import ShardSet

_MEMORY_BYTES_PER_SECOND = 1e9
"""If a thread reads raw crops faster than this, they come from the page cache. If slower, it waits for the storage."""


class OwnSet(NamedTuple):
    """Images per second of a shard set, and its bottleneck: read (storage), decode or copy (memory)."""

    first_images_per_second: float
    first_bound_by: str
    images_per_second: float
    bound_by: str
    shares: Shares


def measure_own_set(shards: ShardSet, batch_size: int, epochs: int) -> OwnSet:
    """Measure `epochs` epochs. Before the first, the shards are dropped from the page cache, if the system allows."""
    for tar in shards.tars:
        _drop_from_cache(os.fspath(tar))
    with ExitStack() as stack:
        passes = take_turns([relic_peer("relic", shards, batch_size, stack)], epochs)["relic"]
    return OwnSet(
        first_images_per_second=passes[0].images_per_second,
        first_bound_by=_bound_by(passes[:1], shards),
        images_per_second=steady_rate(passes),
        bound_by=_bound_by(passes[1:], shards),
        shares=time_shares(passes[1:], available_cores()),
    )


def _drop_from_cache(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _bound_by(passes: list[Pass], shards: ShardSet) -> str:
    read, decode = sum(one.read for one in passes), sum(one.decode for one in passes)
    if decode > read:
        return "decode"
    pixels = sum(one.images for one in passes) * shards.height * shards.width * 3
    return "copy" if shards.encoding == "raw" and pixels > read * _MEMORY_BYTES_PER_SECOND else "read"
