"""Batches of crops from a shard set: threads fill a small ring of reused buffers."""

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relic.loader.decode import SampleDecoder, Seconds
from relic.loader.filling import BatchFilling
from relic.loader.order import Indices
from relic.loader.reading import plan_reading
from relic.loader.threads import LoaderThreads
from relic.machine import share_of_cores
from relic.options import Direct, Encoding, Verify
from relic.shards.npy import PAGE_BYTES
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


_Filling = BatchFilling[tuple[list[str], Seconds], Batch]


class ShardLoader:
    """Reads batches of a shard set with threads. Raw samples go from the file into the batch without a copy.

    `reading` tells what is read through the page cache and what past it.

        order              sample numbers, one array per batch: the plan. A thread takes the next array of it
          |
          v
        reading threads    each takes a part of a batch and reads its samples at their offsets; many may wait
          |
          v
        decode             in the same thread, one thread per core, into the rows of the batch; raw samples need none
          |
          v
        ring of batches    used in turn: | 4 or more being filled or full | the consumer's, the one before it |
          |
          v
        device feed        copies a batch to the device while the one before is computed

    Memory is the ring, whatever the size of the set: 5 batches, or more of small ones, which then hold 80 MiB and the
    consumer's. Batches come in the order of the plan.

    Error: a thread's error (InputError naming shard and sample), or the plan's, is raised by the iterator, at the batch
    of that sample. Batches before it are delivered. The loader stays usable.

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
        io_threads: int = 0,
        direct: Direct = "auto",
        verify: Verify = "first",
        pin_memory: bool = False,
    ) -> None:
        """`batch_size`: crops in the largest batch. `threads` decode at a time: 0 takes `share_of_cores`.

        `io_threads`: most reads in flight, but at least `threads`; `direct`: see `plan_reading`.
        """
        self.shards = shards
        self.times = LoaderTimes()
        cores = threads or share_of_cores()
        self.reading = plan_reading(shards, direct, io_threads, cores)
        self._threads = LoaderThreads(cores, self.reading.in_flight, decodes=shards.encoding != "raw")
        self._decoder = SampleDecoder(shards, verify, self.reading, self._threads)
        shape = (batch_size, shards.height, shards.width, 3)
        self._ahead = max(_PREFETCH, -(-_PREFETCH_BYTES // math.prod(shape)))
        self._rows_per_task = _ROWS_PER_TASK[shards.encoding]
        self._rows_per_waiting_task = max(1, self._ahead * batch_size // (2 * self.reading.in_flight))
        self._waits: deque[int] = deque(maxlen=self._ahead)
        """`LoaderThreads.waits` when each of the last batches was cut."""
        self._ring = list(_buffers((self._ahead + HOLD - 1, *shape), shards.encoding, pin_memory))
        self._rows = [batch.numpy() for batch in self._ring]
        self._fillings: set[_Filling] = set()
        self._adding = threading.Lock()

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
        self._threads.close()
        for filling in tuple(self._fillings):
            filling.abandon()

    def batches(self, plan: Iterable[Indices]) -> Iterator[Batch]:
        """Yield a `Batch` for every array of sample numbers in `plan`, in order. Use one iterator at a time.

        Threads of the loader iterate over `plan`, one after the other.
        """
        filling = BatchFilling(self._threads, plan, self._cut, self._join)
        self._fillings.add(filling)
        try:
            filling.ask(self._ahead - 1)
            while True:
                began = time.perf_counter()
                filling.ask(1)
                batch = filling.take()
                self.times.wait += time.perf_counter() - began
                if batch is None:
                    return
                yield batch
        finally:
            filling.cancel()
            self._fillings.discard(filling)

    def _cut(self, number: int, samples: Indices) -> list[Callable[[], tuple[list[str], Seconds]]]:
        """What fills the rows of a batch: as many parts as keep all threads busy, if reads waited since the last."""
        rows, step = self._rows[number % len(self._rows)], self._rows_per_task
        waits = self._threads.waits
        if len(self._waits) < self._ahead or waits > self._waits[0]:
            step = min(step, self._rows_per_waiting_task)
        self._waits.append(waits)
        return [
            functools.partial(
                self._decoder.fill, rows[first : min(first + step, len(samples))], samples[first : first + step]
            )
            for first in range(0, len(samples), step)
        ]

    def _join(self, number: int, samples: Indices, parts: Sequence[tuple[list[str], Seconds]]) -> Batch:
        with self._adding:
            self.times.read += sum(seconds.read for _, seconds in parts)
            self.times.decode += sum(seconds.decode for _, seconds in parts)
        images = self._ring[number % len(self._ring)][: len(samples)]
        return Batch(images, [key for keys, _ in parts for key in keys])


def _buffers(shape: tuple[int, ...], encoding: Encoding, pin_memory: bool) -> Tensor:
    """uint8 memory. Its first row begins at a page for raw crops, as direct reads need, and 16 bytes later for others.

    libjpeg-turbo writes rows at multiples of 32 bytes past the processor's cache, which takes 1.2 times as long. numpy
    asks the kernel for huge pages and torch does not: 1.3 times the raw crops per second. It is allocated in one piece,
    because torch rounds each pinned piece up to a power of two.
    """
    size = math.prod(shape) + 2 * PAGE_BYTES
    if pin_memory:
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    else:
        memory = torch.from_numpy(np.empty(size, np.uint8))
    first = -memory.data_ptr() % PAGE_BYTES + (0 if encoding == "raw" else 16)
    return memory[first : first + math.prod(shape)].view(shape)
