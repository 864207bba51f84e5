"""The upper limits of the machine: copying raw crops, and decoding JPEGs, without a loader."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import simplejpeg

from relic.arrays import Pixels
from relic.shards.index import index_path, read_records
from relic.shards.npy import HEADER_BYTES
from relic.shards.shard_set import ShardSet

_BATCHES_AHEAD = 4
_ROWS_PER_TASK = 16


def copy_ceiling(shards: ShardSet, batch_size: int) -> Callable[[int], Iterator[Pixels]]:
    """One thread copies the pixels of memory-mapped raw shards, in shuffled order, into reused batch buffers."""
    members = _members(shards)
    ring = _ring(shards, batch_size)
    crop_bytes = shards.height * shards.width * 3

    def epoch(number: int) -> Iterator[Pixels]:
        for step, chosen in enumerate(_batches(len(members), batch_size, number)):
            batch = ring[step % len(ring)][: len(chosen)]
            for row, sample in zip(batch.reshape(len(chosen), crop_bytes), chosen, strict=True):
                row[:] = np.frombuffer(members[sample], np.uint8, crop_bytes, HEADER_BYTES)
            yield batch

    return epoch


def decode_ceiling(
    shards: ShardSet, batch_size: int, cores: int, stack: ExitStack
) -> Callable[[int], Iterator[Pixels]]:
    """One thread per core decodes memory-mapped JPEGs, in shuffled order, into reused batch buffers."""
    members = _members(shards)
    ring = _ring(shards, batch_size)
    pool = stack.enter_context(ThreadPoolExecutor(cores))

    def decode(rows: Pixels, chosen: list[int]) -> None:
        for row, sample in zip(rows, chosen, strict=True):
            simplejpeg.decode_jpeg(members[sample], "RGB", buffer=row)

    def epoch(number: int) -> Iterator[Pixels]:
        pending: deque[tuple[Pixels, list[Future[None]]]] = deque()
        for step, chosen in enumerate(_batches(len(members), batch_size, number)):
            batch = ring[step % len(ring)][: len(chosen)]
            starts = range(0, len(chosen), _ROWS_PER_TASK)
            parts = [slice(start, start + _ROWS_PER_TASK) for start in starts]
            pending.append((batch, [pool.submit(decode, batch[part], chosen[part]) for part in parts]))
            if len(pending) == _BATCHES_AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())

    return epoch


def _finished(batch: Pixels, parts: list["Future[None]"]) -> Pixels:
    for part in parts:
        part.result()
    return batch


def _members(shards: ShardSet) -> list[memoryview]:
    """The payload of each sample in a memory-mapped shard. A mapping is closed with its last view."""
    members: list[memoryview] = []
    for tar in shards.tars:
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
        members += [view[offset : offset + size] for offset, size, *_ in read_records(index_path(tar)).tolist()]
    return members


def _ring(shards: ShardSet, batch_size: int) -> list[Pixels]:
    """Reused batches. New memory for each batch would cause page faults, so the result would not be an upper limit."""
    return [np.zeros((batch_size, shards.height, shards.width, 3), np.uint8) for _ in range(_BATCHES_AHEAD + 1)]


def _batches(samples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    order = np.random.default_rng(seed).permutation(samples).tolist()
    for start in range(0, samples, batch_size):
        yield order[start : start + batch_size]
