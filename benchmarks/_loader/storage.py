"""The upper limit of the storage: whole samples are read at random, and nothing is done with them."""

import mmap
import os
import statistics
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from benchmarks._loader.fio import IN_FLIGHT
from relic.loader.direct import direct_unit
from relic.shards.index import read_records
from relic.shards.shard_set import ShardSet

BLOCK = 4096
"""Offsets and lengths of reads past the page cache are multiples of it."""
_READS_PER_TASK = 8
_TASKS = 4 * IN_FLIGHT


class FilePiece(NamedTuple):
    """Where a sample's payload is."""

    shard: int
    offset: int
    size: int

    @property
    def blocks(self) -> tuple[int, int]:
        """Offset and length of the blocks that hold it."""
        first = self.offset // BLOCK * BLOCK
        return first, -(-(self.offset + self.size) // BLOCK) * BLOCK - first


class StorageReader:
    """32 threads read samples of a set. `direct`: whether past the page cache, which some file systems refuse."""

    def __init__(self, shards: ShardSet, stack: ExitStack) -> None:
        self._pieces = [
            FilePiece(number, offset, size)
            for number, index in enumerate(shards.indexes)
            for offset, size, *_ in read_records(index).tolist()
        ]
        self.direct = direct_unit(shards.tars[0]) is not None
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        self._descriptors = [os.open(tar, flags) for tar in shards.tars]
        for descriptor in self._descriptors:
            stack.callback(os.close, descriptor)
        lengths = [piece.blocks[1] for piece in self._pieces]
        self.block_bytes = int(statistics.median_low(lengths))
        """Bytes of the median read."""
        self._longest = max(lengths)
        self._memory = threading.local()
        self._pool = stack.enter_context(ThreadPoolExecutor(IN_FLIGHT))

    def epoch(self, number: int) -> Iterator[list[int]]:
        """Read every sample once, shuffled. Yields the bytes of each read, some reads at a time."""
        order = np.random.default_rng(number).permutation(len(self._pieces))
        tasks = (order[first : first + _READS_PER_TASK] for first in range(0, len(order), _READS_PER_TASK))
        pending: deque[Future[list[int]]] = deque()
        try:
            for chosen in tasks:
                pending.append(self._pool.submit(self._read, chosen.tolist()))
                if len(pending) == _TASKS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for task in pending:  # nothing may run on into the next measurement
                if not task.cancel():
                    task.exception()

    def payloads(self, samples: Iterable[int]) -> list[bytes]:
        """The payloads of those samples."""
        found = []
        for sample in samples:
            piece = self._pieces[sample]
            start = piece.offset - piece.blocks[0]
            self._read_blocks(piece)
            found.append(bytes(self._scratch()[start : start + piece.size]))
        return found

    def _read(self, chosen: list[int]) -> list[int]:
        return [self._read_blocks(self._pieces[sample]) for sample in chosen]

    def _read_blocks(self, piece: FilePiece) -> int:
        offset, length = piece.blocks
        return os.preadv(self._descriptors[piece.shard], [self._scratch()[:length]], offset)

    def _scratch(self) -> memoryview:
        """Memory of this thread. It begins at a page, as reads past the page cache need it."""
        pages: memoryview | None = getattr(self._memory, "pages", None)
        if pages is None:
            pages = self._memory.pages = memoryview(mmap.mmap(-1, self._longest))
        return pages
