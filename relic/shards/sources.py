"""Which image each sample was cut from, as the `.jsonl` beside its shard says."""

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from relic.errors import InputError
from relic.files import read_bounded
from relic.shards.shard_set import ShardSet

_MOST_LISTING_BYTES = 1 << 28


def sources_of(shards: ShardSet, samples: Sequence[int]) -> list[str]:
    """The source of each sample, counted through all shards. Equal names are the same image.

    A sample without a usable line is taken as an image of its own: in tars of other tools, and in shards of a server,
    whose `.jsonl` stays there.
    """
    numbers = np.searchsorted(np.cumsum(shards.samples), samples, "right")
    found = [f"sample {sample}" for sample in samples]
    for shard in np.unique(numbers).tolist():
        lines = _lines(shards, shard)
        first = sum(shards.samples[:shard])
        for place in np.flatnonzero(numbers == shard).tolist():
            with suppress(ValueError, KeyError, TypeError, IndexError):
                found[place] = f"image {json.loads(lines[samples[place] - first])['source']}"
    return found


def _lines(shards: ShardSet, shard: int) -> list[bytes]:
    """The lines of a shard's listing; none if there is no file that fits the shard."""
    with suppress(OSError, InputError):
        lines = read_bounded(shards.tars[shard].with_suffix(".jsonl"), _MOST_LISTING_BYTES).splitlines()
        if len(lines) == shards.samples[shard]:
            return lines
    return []
