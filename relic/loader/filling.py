"""The batches of one plan: the consumer asks for them and takes them, threads do all the rest."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from relic.loader.order import Indices
from relic.loader.threads import LoaderThreads

PartResult = TypeVar("PartResult")
Filled = TypeVar("Filled")


class _Batch(Generic[PartResult, Filled]):
    """A batch whose parts are being filled."""

    def __init__(self, number: int, samples: Indices, filled: "Future[Filled | None]") -> None:
        self.number, self.samples, self.filled = number, samples, filled
        self.found: dict[int, PartResult] = {}
        """Place of a part -> what it returned."""
        self.errors: dict[int, BaseException] = {}
        self.left = 0
        self.lock = threading.Lock()


class BatchFilling(Generic[PartResult, Filled]):
    """Batches in the order of `plan`.

    The consumer's time is the training's. Its code is slow: after a training step the processor's caches hold none of
    it. So `ask` only submits one task, which takes the samples of the next batch from the plan and submits its parts.
    The thread that fills the last part joins them. With all that in the consumer's thread, a consumer of 20 ms per
    batch waited 1.8 % of its time, and not 0.4 %.

    An error of the plan or of a part is raised by `take`, at its batch.
    """

    def __init__(
        self,
        threads: LoaderThreads,
        plan: Iterable[Indices],
        cut: Callable[[int, Indices], Sequence[Callable[[], PartResult]]],
        join: Callable[[int, Indices, Sequence[PartResult]], Filled],
    ) -> None:
        """`cut` gives the parts of a batch by its number and samples. `join` makes the batch of what they return."""
        self._threads = threads
        self._plan = iter(plan)
        self._cut = cut
        self._join = join
        self._begun = 0
        self._coming: SimpleQueue[Future[Filled | None]] = SimpleQueue()
        """Batches that are begun, in order, and that the consumer did not take."""
        self._taken: Future[Filled | None] | None = None
        self._cancelled = False
        self._lock = threading.Lock()
        """Held while batches are begun, so that they are in order."""

    def ask(self, count: int) -> None:
        """Have so many batches more filled, or those that are left."""
        self._threads.submit(functools.partial(self._begin, count))

    def take(self) -> Filled | None:
        """Wait for the oldest batch that was asked for. None: the plan has ended."""
        self._taken = self._coming.get()
        return self._taken.result()

    def cancel(self) -> None:
        """Begin nothing more, and wait for what is begun."""
        self._cancelled = True
        with self._lock:
            begun = self._not_taken()
        for batch in begun:
            with suppress(CancelledError):
                batch.exception()

    def abandon(self) -> None:
        """Let nobody wait for a batch: the threads have ended."""
        for batch in (*self._not_taken(), never := Future[Filled | None]()):
            batch.cancel()
        self._coming.put(never)

    def _not_taken(self) -> list["Future[Filled | None]"]:
        """Batches in the queue, and the last that was taken: an interrupted consumer may not have waited for it."""
        found = [] if self._taken is None else [self._taken]
        with suppress(Empty):
            while True:
                found.append(self._coming.get_nowait())
        return found

    def _begin(self, count: int) -> None:
        """Begin one batch, and leave the others to a task behind its parts. After the last of the plan comes None."""
        with self._lock:
            if self._cancelled:
                return
            filled: Future[Filled | None] = Future()
            self._coming.put(filled)
            try:
                samples = next(self._plan, None)
                if samples is None:
                    filled.set_result(None)
                    return
                batch: _Batch[PartResult, Filled] = _Batch(self._begun, samples, filled)
                self._begun += 1
                parts = self._cut(batch.number, samples)
                batch.left = len(parts)
                tasks = [functools.partial(self._fill, batch, *part) for part in enumerate(parts)]
                if count > 1:
                    tasks.append(functools.partial(self._begin, count - 1))
                self._threads.submit(*tasks)
                if not parts:
                    self._finish(batch)
            except BaseException as error:  # the consumer raises it
                filled.set_exception(error)

    def _fill(self, batch: _Batch[PartResult, Filled], place: int, part: Callable[[], PartResult]) -> None:
        try:
            if self._cancelled:
                raise CancelledError
            batch.found[place] = part()
        except BaseException as error:  # the consumer raises it
            batch.errors[place] = error
        with batch.lock:
            batch.left -= 1
            last = not batch.left
        if last:
            self._finish(batch)

    def _finish(self, batch: _Batch[PartResult, Filled]) -> None:
        """Give the consumer the batch, or the error of its first part that has one."""
        try:
            if batch.errors:
                raise batch.errors[min(batch.errors)]
            found = [batch.found[place] for place in range(len(batch.found))]
            batch.filled.set_result(self._join(batch.number, batch.samples, found))
        except BaseException as error:
            batch.filled.set_exception(error)
