"""Batches of crops out of a shard set: threads that fill a small ring of reused buffers."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relic.loader.decode import SampleDecoder, Seconds
from relic.loader.order import Indices
from relic.machine import share_of_cores
from relic.options import Verify
from relic.shards.shard_set import ShardSet

_PREFETCH = 4
"""Batches being filled ahead of the consumer's."""
HOLD = 2
"""Batches that stay valid until a further one is asked for: the one just yielded and the one before."""
_ROWS_A_TASK = {"raw": 64, "jpg": 16, "png": 4}
"""Enough work to outweigh handing a task to a thread, little enough to keep all threads busy in one batch."""


class Batch(NamedTuple):
    """Rows of the ring; the last `HOLD` batches stay valid until the next is asked for. Copy what lives longer."""

    images: Tensor
    """uint8 (B, H, W, 3), pinned when the loader pins."""
    keys: list[str]


@dataclass
class LoaderTimes:
    """Seconds since the loader was made."""

    read: float = 0.0
    """All threads together: reading and hashing."""
    decode: float = 0.0
    """All threads together."""
    wait: float = 0.0
    """The consumer's: what the data cost the training."""


class _Filling(NamedTuple):
    slot: int
    rows: int
    parts: list["Future[tuple[list[str], Seconds]]"]


class ShardLoader:
    """Reads batches of a shard set with threads, positional reads and no copies between file and batch.

    Memory is the ring, `batch_size` x 5 crops, whatever the set's size. Samples come exactly as asked for.

    Errors: what goes wrong in a thread (InputError naming shard and sample) is raised by the iterator at the batch it
    belongs to; batches before it are delivered. Cancel: dropping or closing the iterator forgets what was begun, waits
    for reads in flight (a task a thread, at most 64 crops) and leaves the loader usable. Shutdown: `close()`, or
    leaving the `with` block, ends the threads; they are plain threads, so a killed process leaves nothing behind.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        batch_size: int,
        threads: int = 0,
        verify: Verify = "first",
        pin_memory: bool = False,
    ) -> None:
        """`batch_size`: images of the largest batch to come; `threads` 0: `share_of_cores`."""
        self.shards = shards
        self.times = LoaderTimes()
        self._decoder = SampleDecoder(shards, verify)
        self._threads = threads or share_of_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="relic-loader", initializer=_yield_to_others)
        shape = (batch_size, shards.height, shards.width, 3)
        self._ring = [_batch_buffer(shape, pin_memory) for _ in range(_PREFETCH + HOLD - 1)]
        self._rows = [batch.numpy() for batch in self._ring]

    def __enter__(self) -> "ShardLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads after the rows in flight."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, plan: Iterable[Indices]) -> Iterator[Batch]:
        """Yield a `Batch` for every array of sample numbers in `plan`, in order. One iterator at a time."""
        coming = iter(plan)
        filling: deque[_Filling] = deque()
        started = 0
        try:
            while True:
                while len(filling) < _PREFETCH and (samples := next(coming, None)) is not None:
                    filling.append(self._start(started % len(self._ring), samples))
                    started += 1
                if not filling:
                    return
                yield self._finish(filling.popleft())
        finally:
            for future in (part for batch in filling for part in batch.parts):
                if not future.cancel():
                    future.exception()

    def _start(self, slot: int, samples: Indices) -> _Filling:
        rows = self._rows[slot]
        step = _ROWS_A_TASK[self.shards.encoding]
        parts = [
            self._pool.submit(
                self._decoder.fill, rows[first : min(first + step, len(samples))], samples[first : first + step]
            )
            for first in range(0, len(samples), step)
        ]
        return _Filling(slot, len(samples), parts)

    def _finish(self, batch: _Filling) -> Batch:
        began = time.perf_counter()
        keys: list[str] = []
        try:
            for part in batch.parts:
                part_keys, seconds = part.result()
                keys += part_keys
                self.times.read += seconds.read
                self.times.decode += seconds.decode
        except BaseException:
            for part in batch.parts:
                if not part.cancel():
                    part.exception()
            raise
        finally:
            self.times.wait += time.perf_counter() - began
        return Batch(self._ring[batch.slot][: batch.rows], keys)


def _yield_to_others() -> None:
    """Make this thread one that never takes a core from a running thread because it has just been given work.

    The consumer wakes it by asking for a batch, and would lose its own core for the length of a task: a consumer of
    20 ms a batch was measured to wait six times as long without this.
    """
    if hasattr(os, "sched_setscheduler"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))


def _batch_buffer(shape: tuple[int, int, int, int], pin_memory: bool) -> Tensor:
    """uint8. numpy asks the kernel for huge pages, torch does not: a third more raw crops a second were measured."""
    if pin_memory:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))
