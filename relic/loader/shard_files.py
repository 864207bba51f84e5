"""Open shards: the descriptor and the index of each. The number of open shards is bounded."""

import functools
import os
import resource
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from relic.errors import InputError
from relic.shards.index import read_index, shown_key

_RESERVED_DESCRIPTORS = 256
"""For everything else in the process, and for the shards that are opened per read."""
_ENOUGH_DESCRIPTORS = 4096


@functools.cache
def _descriptors() -> threading.Semaphore:
    """The descriptors that all sets of this process may keep open together. Raises the soft limit, if it is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY:
        soft = _ENOUGH_DESCRIPTORS
    return threading.Semaphore(max(soft - _RESERVED_DESCRIPTORS, 0))


Remote = Callable[[int, int], memoryview]
"""Brings bytes of a shard: their offset, their number."""


class OpenShard:
    """A tar and the records of its index. They are kept as arrays, since many shards are open at once.

    The descriptor closes when the last user drops the object. Where the process may open only few files, a shard keeps
    no descriptor and opens its tar at every read.

    `remote` brings bytes of the shard while its tar is not there; the tar may come and go.
    """

    def __init__(self, tar: Path, index: Path, remote: Remote | None = None) -> None:
        self.tar = tar
        self._descriptor = -1
        self._remote = remote
        header, records = read_index(index)
        self.offsets, self.sizes, self.digests = (
            array("Q", records[name].tobytes()) for name in ("offset", "size", "xxh3")
        )
        self._keys = records["key"].tobytes()
        self._key_bytes = records.dtype["key"].itemsize
        self._budget = _descriptors()
        if remote is not None:
            return
        descriptor = self._opened()
        length = os.fstat(descriptor).st_size
        if self._budget.acquire(blocking=False):
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        if length != header.tar_bytes:
            raise InputError(f"{tar}: cut or changed since it was indexed; pack the shards again")

    def _opened(self) -> int:
        """The tar's descriptor, or -1 while only the server has the shard."""
        try:
            return os.open(self.tar, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if self._remote is not None and isinstance(error, FileNotFoundError):
                return -1
            raise InputError(f"{self.tar}: cannot be opened ({error.strerror})") from error

    def key(self, place: int) -> str:
        """The key of sample `place`."""
        return shown_key(self._keys[place * self._key_bytes : (place + 1) * self._key_bytes].rstrip(b"\0"))

    def read_into(self, buffers: Sequence[memoryview | bytearray], place: int) -> None:
        """Fill `buffers` with the payload of sample `place`. Raises InputError when the file ends too early."""
        descriptor = self._descriptor if self._descriptor >= 0 else self._opened()
        if descriptor < 0:
            assert self._remote is not None
            data, start = self._remote(self.offsets[place], self.sizes[place]), 0
            for buffer in buffers:
                buffer[:] = data[start : start + len(buffer)]
                start += len(buffer)
            return
        try:
            got = os.preadv(descriptor, buffers, self.offsets[place])
        except OSError as error:  # a failing disk: the system's error names no file
            raise self.fault(place, f"cannot be read ({error.strerror})") from error
        finally:
            if descriptor != self._descriptor:
                os.close(descriptor)
        if got != self.sizes[place]:
            raise self.fault(place, f"{self.sizes[place]} bytes expected, {got} found; the shard was cut")

    def fault(self, place: int, what: str) -> InputError:
        """An error that names shard and sample."""
        return InputError(f"{self.tar}: sample {self.key(place)}: {what}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._budget.release()


class ShardFiles:
    """The shards of a set, opened on first use. The least recently used ones are dropped.

    At most `max_open` shards stay open, with at most `max_records` samples in them, which bounds the memory.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        indexes: Sequence[Path],
        remotes: Sequence[Remote] = (),
        max_open: int = 512,
        max_records: int = 2_000_000,
    ) -> None:
        self._tars = tars
        self._indexes = indexes
        self._remotes = remotes
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
            remote = self._remotes[number] if self._remotes else None
            shard = OpenShard(self._tars[number], self._indexes[number], remote)
            self._open[number] = shard
            self._records += len(shard.offsets)
            while len(self._open) > self._max_open or (self._records > self._max_records and len(self._open) > 1):
                self._records -= len(self._open.popitem(last=False)[1].offsets)
        else:
            self._open.move_to_end(number)
        return shard
