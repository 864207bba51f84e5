"""The shards of a set, opened on first use. The number of open ones is bounded."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable

from relic.loader.open_shard import OpenShard, Waits
from relic.loader.reading import Reading
from relic.shards.shard_set import ShardSet

_CHECK_LOCKS = 256
"""Shards that are checked at once, at most."""


class ShardFiles:
    """The shards of a set, opened on first use. The least recently used ones are dropped.

    At most `max_open` shards stay open, with at most `max_records` samples in them, which bounds the memory.
    `ShardSet.check` is called before a shard is opened, without the lock: it may wait for a server.
    """

    def __init__(
        self,
        shards: ShardSet,
        reading: Reading,
        waits: Waits,
        max_open: int = 512,
        max_records: int = 2_000_000,
    ) -> None:
        self._shards = shards
        self._reading = reading
        self._waits = waits
        self._max_open = max_open
        self._max_records = max_records
        self._records = 0
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._checks = [threading.Lock() for _ in range(_CHECK_LOCKS)]

    def open(self, numbers: Collection[int]) -> dict[int, OpenShard]:
        """The shards of those numbers. Each stays open while the caller holds it."""
        with self._lock:
            unopened = [number for number in numbers if number not in self._open]
        if unopened:
            self._check(unopened)
        with self._lock:
            return {number: self._opened(number) for number in numbers}

    def _check(self, numbers: Iterable[int]) -> None:
        if self._shards.remotes:
            self._waits.lend_core()
        try:
            for number in numbers:
                with self._checks[number % _CHECK_LOCKS]:  # a second thread finds what the first has brought
                    self._shards.check(number)
        finally:
            if self._shards.remotes:
                self._waits.take_core()

    def _opened(self, number: int) -> OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = OpenShard(
                self._shards.tars[number],
                self._shards.indexes[number],
                direct=number >= self._reading.cached,
                waits=None if self._reading.in_memory else self._waits,
                remote=self._shards.remotes[number] if self._shards.remotes else None,
            )
            self._open[number] = shard
            self._records += len(shard.offsets)
            while len(self._open) > self._max_open or (self._records > self._max_records and len(self._open) > 1):
                self._records -= len(self._open.popitem(last=False)[1].offsets)
        else:
            self._open.move_to_end(number)
        return shard
