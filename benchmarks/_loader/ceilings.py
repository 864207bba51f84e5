"""The upper limits of the machine: copying raw crops, reading them, and decoding, without a loader."""

import io
import math
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import simplejpeg
from PIL import Image

from relic.arrays import Pixels
from relic.pictures.crop_png import decode_crop_png
from relic.pictures.turbo import decode_jpeg
from relic.shards.index import read_records
from relic.shards.shard_set import ShardSet

Members = Sequence[bytes | memoryview]
"""Payloads of samples, in memory."""
BatchesOfEpoch = Callable[[int], Iterator[Pixels]]
"""Number of an epoch -> its batches."""
_BATCHES_AHEAD = 9
"""As the loader has for batches of 64."""
_ROWS_PER_TASK = {"raw": 64, "jpg": 16, "png": 4}
"""As the loader has them."""
_BLOCK_BYTES = 64 << 20
"""More than the caches of most processors hold."""


def copy_ceiling(
    shards: ShardSet, members: Members, batch_size: int, threads: int, stack: ExitStack, repeats: int = 1
) -> BatchesOfEpoch:
    """The threads copy the pixels of raw members, in shuffled order, into reused batch buffers.

    `repeats`: how often an epoch has each member. The pixels lie in one array: a mapped file has small pages, so
    copying from it is slower than reading the file.
    """
    pixels = shards.height * shards.width * 3
    source = np.empty((len(members), pixels), np.uint8)
    for crop, member in zip(source, members, strict=True):
        crop[:] = np.frombuffer(member, np.uint8)[-pixels:]

    def fill(rows: Pixels, chosen: list[int]) -> None:
        for row, sample in zip(rows.reshape(len(chosen), pixels), chosen, strict=True):
            row[:] = source[sample]

    return _epochs(fill, shards, len(members), batch_size, threads, stack, repeats)


def read_ceiling(shards: ShardSet, batch_size: int, threads: int, stack: ExitStack) -> BatchesOfEpoch:
    """The same from open files, with one system call per crop, as a loader that checks nothing would read them."""
    places: list[tuple[int, int]] = []
    pixels = shards.height * shards.width * 3
    for tar, index in zip(shards.tars, shards.indexes, strict=True):
        descriptor = os.open(tar, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        records = read_records(index).tolist()
        places += [(descriptor, offset + size - pixels) for offset, size, *_ in records]

    def fill(rows: Pixels, chosen: list[int]) -> None:
        for row, sample in zip(rows.reshape(len(chosen), pixels), chosen, strict=True):
            descriptor, offset = places[sample]
            if os.preadv(descriptor, (row.data,), offset) != pixels:
                raise OSError(f"{shards.folder}: a shard was cut while it was measured")

    return _epochs(fill, shards, len(places), batch_size, threads, stack, 1)


def block_ceiling(shards: ShardSet, threads: int, stack: ExitStack) -> BatchesOfEpoch:
    """The threads copy blocks of many crops at once: the bandwidth of the memory, as crops."""
    crop = (shards.height, shards.width, 3)
    crops = max(1, min(_BLOCK_BYTES // math.prod(crop), -(-shards.num_samples // threads)))
    blocks = [(np.ones((crops, *crop), np.uint8), np.zeros((crops, *crop), np.uint8)) for _ in range(threads)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))

    def copy(block: tuple[Pixels, Pixels]) -> Pixels:
        block[1][:] = block[0]
        return block[1]

    def epoch(_: int) -> Iterator[Pixels]:
        for _ in range(-(-shards.num_samples // (crops * threads))):
            yield from pool.map(copy, blocks)

    return epoch


def decode_ceiling(
    shards: ShardSet, members: Members, batch_size: int, threads: int, stack: ExitStack, repeats: int = 1
) -> BatchesOfEpoch:
    """The threads decode JPEGs or PNGs, in shuffled order, into reused batch buffers."""
    decode = {"jpg": _jpg, "png": _png}[shards.encoding]

    def fill(rows: Pixels, chosen: list[int]) -> None:
        for row, sample in zip(rows, chosen, strict=True):
            decode(members[sample], row)

    return _epochs(fill, shards, len(members), batch_size, threads, stack, repeats)


def _jpg(member: bytes | memoryview, row: Pixels) -> None:
    try:
        simplejpeg.decode_jpeg(member, "RGB", buffer=row)
    except ValueError:  # a kind of JPEG that TurboJPEG has no name for
        decode_jpeg(member, "RGB", row)


def _png(member: bytes | memoryview, row: Pixels) -> None:
    if not decode_crop_png(memoryview(member), row):  # a PNG of another program
        with Image.open(io.BytesIO(member), formats=("PNG",)) as image:
            row[:] = np.asarray(image.convert("RGB"))


def _epochs(
    fill: Callable[[Pixels, list[int]], None],
    shards: ShardSet,
    samples: int,
    batch_size: int,
    threads: int,
    stack: ExitStack,
    repeats: int,
) -> BatchesOfEpoch:
    """A function from an epoch's number to its batches: `threads` threads call `fill` for parts of them.

    Batches are reused. New memory for each would cause page faults, so the result would not be an upper limit.
    """
    ring = [np.zeros((batch_size, shards.height, shards.width, 3), np.uint8) for _ in range(_BATCHES_AHEAD + 1)]
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    step_rows = _ROWS_PER_TASK[shards.encoding]

    def epoch(number: int) -> Iterator[Pixels]:
        pending: deque[tuple[Pixels, list[Future[None]]]] = deque()
        try:
            for step, chosen in enumerate(_batches(samples, batch_size, number, repeats)):
                batch = ring[step % len(ring)][: len(chosen)]
                parts = [slice(start, start + step_rows) for start in range(0, len(chosen), step_rows)]
                pending.append((batch, [pool.submit(fill, batch[part], chosen[part]) for part in parts]))
                if len(pending) == _BATCHES_AHEAD:
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            for part in (part for _, parts in pending for part in parts):
                if not part.cancel():  # nothing may run on into the next measurement
                    part.exception()

    return epoch


def _finished(batch: Pixels, parts: list["Future[None]"]) -> Pixels:
    for part in parts:
        part.result()
    return batch


def mapped_members(shards: ShardSet) -> list[memoryview]:
    """The payload of each sample in a memory-mapped shard. A mapping is closed with its last view."""
    members: list[memoryview] = []
    for tar, index in zip(shards.tars, shards.indexes, strict=True):
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
        members += [view[offset : offset + size] for offset, size, *_ in read_records(index).tolist()]
    return members


def _batches(samples: int, batch_size: int, seed: int, repeats: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(samples) for _ in range(repeats)])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()
