"""An open shard: the descriptor of its tar, its index, and reads of its samples."""

import errno
import functools
import mmap
import os
import resource
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from relic.errors import InputError
from relic.loader.direct import DIRECT, direct_unit
from relic.shards.index import read_index, shown_key
from relic.shards.npy import PAGE_BYTES
from relic.shards.shard_set import ServedShard

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


class Scratch(threading.local):
    """Memory of each thread, reused: new memory for every sample costs page faults. It begins at a page."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)

    def view(self, size: int) -> memoryview:
        """The first `size` bytes. The next call gives the same ones."""
        if len(self._memory) < size:
            self._memory = mmap.mmap(-1, size)
        return memoryview(self._memory)[:size]


class Waits(Protocol):
    """Is told when a thread may wait for the storage, and when it has to compute."""

    def lend_core(self) -> None: ...

    def take_core(self) -> None: ...


class OpenShard:
    """A tar and the records of its index.

    The descriptor closes when the last user drops the object. Where the process may open only few files, a shard keeps
    no descriptor and opens its tar at every read.

    `remote` brings bytes of the shard until its tar is there. A tar that another run removes is read to the end, since
    the descriptor is kept.

    `direct`: read past the page cache. Where the file system refuses that, what was read is dropped from the cache
    again, unless it was there before.
    """

    def __init__(
        self,
        tar: Path,
        index: Path,
        *,
        direct: bool = False,
        waits: Waits | None = None,
        remote: ServedShard | None = None,
    ) -> None:
        self.tar = tar
        self._descriptor = -1
        self._keeping = threading.Lock()
        self._remote = remote
        header, records = read_index(index)
        self.offsets, self.sizes, self.digests, self._keys = _columns(records)
        self._key_bytes = records.dtype["key"].itemsize
        unit = direct_unit(tar) if direct else None
        self._flags = os.O_RDONLY | os.O_NONBLOCK if unit is None else DIRECT
        self._unit = unit or 1
        """Bytes of which memory, offset and length of a read are multiples; 1 for reads through the page cache."""
        self._drops = direct and unit is None
        self._waits = waits
        self._tries_cache = waits is not None and unit is None
        self._budget = _descriptors()
        if remote is not None:
            return
        descriptor = self._opened()
        length = os.fstat(descriptor).st_size
        if self._budget.acquire(blocking=False):
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        self._tries_cache = self._tries_cache and self._descriptor >= 0
        if length != header.tar_bytes:
            raise InputError(f"{tar}: cut or changed since it was indexed; pack the shards again")

    def _opened(self) -> int:
        """The tar's descriptor, or -1 while only the server has the shard."""
        try:
            descriptor = os.open(self.tar, self._flags)
        except OSError as error:
            if self._remote is not None and isinstance(error, FileNotFoundError):
                return -1
            raise InputError(f"{self.tar}: cannot be opened ({error.strerror})") from error
        if self._drops:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # else the kernel reads ahead, into the cache
        if self._remote is not None:
            with self._keeping:
                if self._descriptor < 0 and self._budget.acquire(blocking=False):
                    self._descriptor = descriptor
        return descriptor

    def key(self, place: int) -> str:
        """The key of sample `place`."""
        return shown_key(bytes(self._keys[place * self._key_bytes : (place + 1) * self._key_bytes]).rstrip(b"\0"))

    def room(self, place: int) -> int:
        """Bytes of memory that `read` needs for sample `place`: whole pages."""
        return -(-(self.sizes[place] + 2 * self._unit) // PAGE_BYTES) * PAGE_BYTES

    def read(self, place: int, memory: memoryview) -> memoryview:
        """The payload of sample `place`, in `memory`, which begins at a page and has `room` bytes.

        Raises InputError when the file ends too early.
        """
        offset, size, unit = self.offsets[place], self.sizes[place], self._unit
        skipped = offset % unit
        self._fill((memory[: -(-(skipped + size) // unit) * unit],), offset - skipped, skipped + size, place)
        return memory[skipped : skipped + size]

    def read_end(self, row: memoryview, address: int, place: int, memory: memoryview) -> None:
        """Fill `row`, which lies at `address`, with the end of the payload of sample `place`.

        `memory`: see `read_into`.
        """
        size, unit = len(row), self._unit
        start = self.offsets[place] + self.sizes[place] - size
        if start % unit or address % unit or size % unit:
            self.read_into(row, address, place, memory)
        else:
            self._fill((row,), start, size, place)

    def read_into(self, row: memoryview, address: int, place: int, memory: memoryview) -> memoryview:
        """Read the payload of sample `place`. Its end fills `row`, which lies at `address`; returns what is before it.

        A direct read goes into the row if the pixels and the row begin at multiples of the unit. Otherwise it goes to
        `memory`, which begins at a page and has two pages more than the payload, and is copied.
        """
        offset, size, unit = self.offsets[place], self.sizes[place], self._unit
        before = size - len(row)
        if unit == 1:
            head = memory[:before]
            self._fill((head, row), offset, size, place)
            return head
        if (offset + before) % unit or address % unit or len(row) % unit:
            payload = self.read(place, memory)
            np.copyto(np.frombuffer(row, np.uint8), np.frombuffer(payload[before:], np.uint8))  # releases the GIL
            return payload[:before]
        skipped = offset % unit
        head = memory[: skipped + before]
        self._fill((head, row), offset - skipped, skipped + size, place)
        return head[skipped:]

    def _fill(self, buffers: Sequence[memoryview], offset: int, least: int, place: int) -> None:
        """Fill `buffers`: from the page cache if all is there, otherwise by a read that may wait for the storage."""
        descriptor = self._descriptor if self._descriptor >= 0 else self._opened()
        if descriptor < 0:
            self._from_server(buffers, offset, least)
            return
        try:
            if self._tries_cache:
                try:
                    if os.preadv(descriptor, buffers, offset, os.RWF_NOWAIT) >= least:
                        return
                except OSError as error:  # others than EAGAIN: kernel or file system cannot tell, or the disk fails
                    self._tries_cache = error.errno == errno.EAGAIN
            got = self._from_storage(descriptor, buffers, offset)
        except OSError as error:  # a failing disk: the system's error names no file
            raise self.fault(place, f"cannot be read ({error.strerror})") from error
        finally:
            if descriptor != self._descriptor:
                os.close(descriptor)
        if got < least:
            found = max(got - (self.offsets[place] - offset), 0)
            raise self.fault(place, f"{self.sizes[place]} bytes expected, {found} found; the shard was cut")

    def _from_storage(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self._waits is not None:
            self._waits.lend_core()
        try:
            return os.preadv(descriptor, buffers, offset)
        finally:
            if self._drops:
                length = sum(map(len, buffers)) + PAGE_BYTES
                os.posix_fadvise(descriptor, offset // PAGE_BYTES * PAGE_BYTES, length, os.POSIX_FADV_DONTNEED)

    def _from_server(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        assert self._remote is not None
        if self._waits is not None:
            self._waits.lend_core()
        data = self._remote.read(offset, length)
        for buffer in buffers:
            part, data = data[: len(buffer)], data[len(buffer) :]
            np.copyto(np.frombuffer(buffer, np.uint8)[: len(part)], np.frombuffer(part, np.uint8))  # releases the GIL

    def fault(self, place: int, what: str) -> InputError:
        """An error that names shard and sample."""
        tar = self.tar if self._remote is None or self.tar.exists() else self._remote.name
        return InputError(f"{tar}: sample {self.key(place)}: {what}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._budget.release()


def _columns(records: npt.NDArray[np.void]) -> list[memoryview]:
    """Offsets, sizes and hashes as whole numbers, and the bytes of the keys.

    In memory of its own: malloc would spread them over its arenas, one for each thread, and keep these when a shard is
    closed.
    """
    memory = memoryview(mmap.mmap(-1, max(records.nbytes, 1)))
    columns, filled = [], 0
    for name in ("offset", "size", "xxh3", "key"):
        column = memory[filled : filled + len(records) * records.dtype[name].itemsize]
        np.frombuffer(column, records.dtype[name])[:] = records[name]
        columns.append(column if name == "key" else column.cast("Q"))
        filled += len(column)
    return columns
