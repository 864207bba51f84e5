"""Open shards: a descriptor and the index of each, a bounded number at a time."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from relic.errors import InputError
from relic.shards.index import index_path, read_header, read_records


class OpenShard:
    """A tar with its records as lists, since one sample at a time is looked up in them.

    The descriptor closes when the last user drops the object.
    """

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self._descriptor = -1
        records = read_records(index_path(tar))
        self.offsets: list[int] = records["offset"].tolist()
        self.sizes: list[int] = records["size"].tolist()
        self.digests: list[int] = records["xxh3"].tolist()
        self.keys: list[str] = [key.decode() for key in records["key"].tolist()]
        try:
            self._descriptor = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{tar}: cannot be opened ({error.strerror})") from error
        if os.fstat(self._descriptor).st_size != read_header(index_path(tar)).tar_bytes:
            raise InputError(f"{tar}: cut or changed since it was indexed; pack the shards again")

    def read_into(self, buffers: Sequence[memoryview | bytearray], place: int) -> int:
        """Fill `buffers` with the payload of sample `place`; return its size in bytes.

        `buffers` may be shorter or longer than the payload, and then hold its beginning or bytes that follow it. Raises
        InputError when the file ends before the payload does.
        """
        size = self.sizes[place]
        got = os.preadv(self._descriptor, buffers, self.offsets[place])
        if got < size and got < sum(map(len, buffers)):
            raise self.fault(place, f"{size} bytes wanted, {got} there; the shard was cut")
        return size

    def fault(self, place: int, what: str) -> InputError:
        """An error that names shard and sample."""
        return InputError(f"{self.tar}: sample {self.keys[place]}: {what}")

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

    def open(self, numbers: Iterable[int]) -> dict[int, OpenShard]:
        """The shards of those numbers, which stay open as long as they are held."""
        with self._lock:
            return {number: self._opened(number) for number in numbers}

    def _opened(self, number: int) -> OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = OpenShard(self._tars[number])
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard
