"""Batches of crops from a shard set: threads fill a small ring of reused buffers."""

import math
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
"""Smallest number of batches that threads fill while the consumer works on the one before."""
_PREFETCH_BYTES = 80 << 20
"""Pixels that threads fill ahead, at least: 557 crops of 224x224. A pause of the storage costs the consumer nothing if
these last longer, whatever the batch size."""
HOLD = 2
"""Batches that stay valid until the next one is requested: the one just yielded and the one before it."""
_ROWS_PER_TASK = {"raw": 64, "jpg": 16, "png": 4}
"""Large enough that starting a task costs little. Small enough that one batch keeps all threads busy."""


class Batch(NamedTuple):
    """Rows of the ring. The last `HOLD` batches stay valid until the next is requested. Copy what must live longer."""

    images: Tensor
    """uint8 (B, H, W, 3), pinned when the loader pins."""
    keys: list[str]


@dataclass
class LoaderTimes:
    """Seconds since the loader was made."""

    read: float = 0.0
    """Reading and hashing, summed over the threads."""
    decode: float = 0.0
    """Decoding, summed over the threads."""
    wait: float = 0.0
    """The consumer's waiting: the time that data costs the training."""


class _Filling(NamedTuple):
    slot: int
    rows: int
    parts: list["Future[tuple[list[str], Seconds]]"]


class ShardLoader:
    """Reads batches of a shard set with threads. Raw samples go from the file into the batch without a copy.

        order              sample numbers, one array per batch: the plan
          |
          v
        reading threads    each takes a part of a batch and reads its samples at their offsets
          |
          v
        decode             in the same thread, into the rows of the batch; raw samples need none
          |
          v
        ring of batches    used in turn: | 4 or more being filled or full | the consumer's, the one before it |
          |
          v
        device feed        copies a batch to the device while the one before is computed

    Memory is the ring, whatever the size of the set: 5 batches, or more of small ones, which then hold 80 MiB and the
    consumer's. Batches come in the order of the plan.

    Error: a thread's error (InputError naming shard and sample) is raised by the iterator, at the batch of that sample.
    Batches before it are delivered. The loader stays usable.

    Cancel: closing or dropping the iterator cancels the tasks that have not started. It waits for the others, at most
    one task per thread and 64 crops per task. The loader stays usable.

    Shutdown: `close()`, or leaving the `with` block, cancels in the same way and ends the threads. Threads end with
    their process: a killed process leaves no other process, no shared memory and no file.
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
        """`batch_size`: crops in the largest batch. `threads`: 0 takes `share_of_cores`."""
        self.shards = shards
        self.times = LoaderTimes()
        self._decoder = SampleDecoder(shards, verify)
        self._threads = threads or share_of_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="relic-loader", initializer=_avoid_preemption)
        shape = (batch_size, shards.height, shards.width, 3)
        self._ahead = max(_PREFETCH, -(-_PREFETCH_BYTES // math.prod(shape)))
        self._ring = list(_buffers((self._ahead + HOLD - 1, *shape), pin_memory))
        self._rows = [batch.numpy() for batch in self._ring]

    def __enter__(self) -> "ShardLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def ring_bytes(self) -> int:
        """Memory of the ring of batches."""
        return sum(rows.nbytes for rows in self._rows)

    def close(self) -> None:
        """End the threads once their present tasks are done."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, plan: Iterable[Indices]) -> Iterator[Batch]:
        """Yield a `Batch` for every array of sample numbers in `plan`, in order. Use one iterator at a time."""
        coming = iter(plan)
        filling: deque[_Filling] = deque()
        started = 0
        try:
            while True:
                while len(filling) < self._ahead and (samples := next(coming, None)) is not None:
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
        step = _ROWS_PER_TASK[self.shards.encoding]
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


def _avoid_preemption() -> None:
    """Give this thread the policy SCHED_BATCH: waking it does not take the core of a running thread.

    The consumer wakes the threads when it requests a batch. Without this it could lose its core for a whole task: a
    consumer of 20 ms per batch was measured to wait six times as long.
    """
    if hasattr(os, "sched_setscheduler"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))


def _buffers(shape: tuple[int, ...], pin_memory: bool) -> Tensor:
    """uint8 memory. numpy asks the kernel for huge pages and torch does not: 1.3 times the raw crops per second.

    It is allocated in one piece, because torch rounds each pinned piece up to a power of two.
    """
    if pin_memory:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))
