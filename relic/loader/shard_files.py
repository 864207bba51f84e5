"""Open shards: a descriptor and the index of each, a bounded number at a time."""

import os
import struct
import threading
from collections import OrderedDict
from pathlib import Path

from relic.errors import InputError
from relic.shards.index import index_path, read_header, read_records

_FIXED = struct.Struct("<QQQ")


class OpenShard:
    """A tar with its records. The descriptor closes when the last user drops the object."""

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self._descriptor = -1
        records = read_records(index_path(tar))
        self._bytes = records.tobytes()
        self._stride = records.dtype.itemsize
        try:
            self._descriptor = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{tar}: cannot be opened ({error.strerror})") from error
        if os.fstat(self._descriptor).st_size != read_header(index_path(tar)).tar_bytes:
            raise InputError(f"{tar}: cut or changed since it was indexed; pack the shards again")

    def record(self, number: int) -> tuple[int, int, int, str]:
        """Offset, size in bytes, xxh3-64 and key of the shard's sample `number`."""
        start = number * self._stride
        key = self._bytes[start + _FIXED.size : start + self._stride].rstrip(b"\0").decode()
        return (*_FIXED.unpack_from(self._bytes, start), key)

    def read_into(self, buffers: list[memoryview], offset: int, size: int, key: str) -> None:
        """Fill `buffers` (together `size` bytes) from `offset`. Raises InputError when the file ends before."""
        got = os.preadv(self._descriptor, buffers, offset)
        if got != size:
            raise InputError(f"{self.tar}: sample {key}: {size} bytes wanted, {got} there; the shard was cut")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ShardFiles:
    """The shards of a set, opened on first use; the least recently used are let go beyond `max_open`."""

    def __init__(self, tars: tuple[Path, ...], max_open: int = 512) -> None:
        self._tars = tars
        self._max_open = max_open
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                shard = self._open[number] = OpenShard(self._tars[number])
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return shard
