"""How the shards of a set are read: through the page cache or past it, and how many reads are in flight."""

import itertools
from typing import NamedTuple

from relic.launch import read_ranks
from relic.loader.direct import direct_unit
from relic.machine import available_memory, is_in_memory
from relic.options import Direct
from relic.shards.shard_set import ShardSet

_IN_FLIGHT = 32
"""Reads with which drives and file servers come near to their full rate, for all processes of a machine."""
_LEAST_IN_FLIGHT = 8
_CACHE_SHARE = 0.75
"""Of the memory that is available. The rest is for the training."""


class Reading(NamedTuple):
    """How a set is read. Its text is for the log."""

    in_flight: int
    """Most reads at a time."""
    cached: int
    """The first shards of this number are read through the page cache. The others are read past it."""
    in_memory: bool
    """Whether the set lies in a file system without storage, so that no read waits."""
    why: str

    def __str__(self) -> str:
        return self.why if self.in_memory else f"{self.why}; up to {self.in_flight} reads in flight"


def plan_reading(shards: ShardSet, direct: Direct, io_threads: int, cores: int) -> Reading:
    """Decide by the size of the set and the memory that is available.

    A set that fits stays in the page cache after its first epoch. Of a larger set, as many shards are read through the
    cache as fit, and the others past it: an epoch reads every sample once, so a cache that takes all in turn has given
    up most before they are read again.

    `direct`: `on` reads all past the cache, `off` none. `io_threads`: 0 takes 32 for all processes of a machine.
    """
    in_flight = max(cores, io_threads or max(_LEAST_IN_FLIGHT, _IN_FLIGHT // read_ranks().local_size))
    total = sum(shards.tar_bytes)
    if shards.remotes:
        why = "are read from the disk where they are there, else from the server"
        return Reading(in_flight, len(shards.tars), False, f"{shards.split} shards ({_size(total)}) {why}")
    if is_in_memory(shards.tars[0]):
        return Reading(cores, len(shards.tars), True, f"{shards.split} shards ({_size(total)}) are in memory")
    cached, why = len(shards.tars), "--direct off"
    if direct == "on":
        cached, why = 0, "--direct on"
    elif direct == "auto":
        memory = available_memory()
        sums = list(itertools.accumulate(shards.tar_bytes))
        cached = sum(most <= memory * _CACHE_SHARE for most in sums)
        fits = "fit" if cached == len(sums) else "do not fit"
        why = f"they {fits} into the available memory ({_size(memory)})"
    how = "through the page cache"
    if cached < len(shards.tars):
        share = sum(shards.tar_bytes[:cached]) / total
        how = "past the page cache" if not cached else f"{share:.0%} through the page cache, the others past it"
        if direct_unit(shards.tars[cached]) is None:
            how += " (the file system refuses direct reads: what was read is dropped from the cache instead)"
    return Reading(in_flight, cached, False, f"{shards.split} shards ({_size(total)}) are read {how}: {why}")


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
