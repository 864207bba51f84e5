"""Open shards: the descriptor and the index of each. The number of open shards is bounded."""

import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from relic.errors import InputError
from relic.shards.index import read_header, read_records


class OpenShard:
    """A tar and the records of its index. They are kept as arrays, since many shards are open at once.

    The descriptor closes when the last user drops the object.
    """

    def __init__(self, tar: Path, index: Path) -> None:
        self.tar = tar
        self._descriptor = -1
        records = read_records(index)
        self.offsets, self.sizes, self.digests = (
            array("Q", records[name].tobytes()) for name in ("offset", "size", "xxh3")
        )
        self._keys = records["key"].tobytes()
        self._key_bytes = records.dtype["key"].itemsize
        try:
            self._descriptor = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{tar}: cannot be opened ({error.strerror})") from error
        if os.fstat(self._descriptor).st_size != read_header(index).tar_bytes:
            raise InputError(f"{tar}: cut or changed since it was indexed; pack the shards again")

    def key(self, place: int) -> str:
        """The key of sample `place`."""
        return self._keys[place * self._key_bytes : (place + 1) * self._key_bytes].rstrip(b"\0").decode()

    def read_into(self, buffers: Sequence[memoryview | bytearray], place: int) -> None:
        """Fill `buffers` with the payload of sample `place`. Raises InputError when the file ends too early."""
        got = os.preadv(self._descriptor, buffers, self.offsets[place])
        if got != self.sizes[place]:
            raise self.fault(place, f"{self.sizes[place]} bytes expected, {got} found; the shard was cut")

    def fault(self, place: int, what: str) -> InputError:
        """An error that names shard and sample."""
        return InputError(f"{self.tar}: sample {self.key(place)}: {what}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ShardFiles:
    """The shards of a set, opened on first use. The least recently used ones are dropped.

    At most `max_open` shards stay open, since descriptors are few, with at most `max_records` samples in them, which
    bounds the memory.
    """

    def __init__(
        self, tars: Sequence[Path], indexes: Sequence[Path], max_open: int = 512, max_records: int = 2_000_000
    ) -> None:
        self._tars = tars
        self._indexes = indexes
        self._max_open = max_open
        self._max_records = max_records
        self._records = 0
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, numbers: Iterable[int]) -> dict[int, OpenShard]:
        """The shards of those numbers. Each stays open while the caller holds it."""
        with self._lock:
            return {number: self._opened(number) for number in numbers}

    def _opened(self, number: int) -> OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = OpenShard(self._tars[number], self._indexes[number])
            self._records += len(shard.offsets)
            while len(self._open) > self._max_open or (self._records > self._max_records and len(self._open) > 1):
                self._records -= len(self._open.popitem(last=False)[1].offsets)
        else:
            self._open.move_to_end(number)
        return shard
