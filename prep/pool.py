"""The engine of one machine: processes, each with its own pipe, so one that is killed loses only its current task.

- Workers are spawned, so they inherit no threads or locks. They ignore Ctrl-C: the parent handles it. They are killed
  if the parent dies.
- If a worker dies, its task is given to a new worker once. If that worker dies too, InputError is raised.
- Every wait has a time limit.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic

from prep.engine import Engine, Finished, Result, RunningItems, Task, Work, attempt, result_of
from relic.errors import InputError

_TICK_SECONDS = 0.1
_ATTEMPTS = 2
_PR_SET_PDEATHSIG = 1


def run_tasks(
    work: Work[Task, Result], tasks: Sequence[Task], *, workers: int, describe: Callable[[Task, int], str]
) -> Generator[Finished[Task, Result] | RunningItems, None, None]:
    """Run the tasks in `workers` processes, see `prep.engine.Engine`."""
    context = multiprocessing.get_context("spawn")
    # If it were started together with the first worker, that worker would not be protected from Ctrl-C.
    resource_tracker.ensure_running()
    waiting = deque((task, 1) for task in tasks)
    pool: list[_Worker[Task, Result]] = []
    try:
        while waiting or any(worker.task is not None for worker in pool):
            pool = [worker for worker in pool if worker.alive]
            while waiting and len(pool) < min(workers, len(tasks)):
                pool.append(_Worker(context, work))
            for worker in pool:
                if worker.task is None and waiting:
                    worker.give(*waiting.popleft())
            wait([end for worker in pool for end in worker.ends], timeout=_TICK_SECONDS)
            for worker in pool:
                if outcome := worker.poll():
                    yield outcome
                if not worker.alive and worker.task is not None:
                    waiting.appendleft(worker.retry(describe))
            yield RunningItems(sum(worker.items for worker in pool))
    finally:
        for worker in pool:
            worker.kill()
        for worker in pool:
            worker.join()


def local_engine(workers: int) -> Engine:
    """The engine that runs `workers` processes of this machine."""
    return functools.partial(run_tasks, workers=workers)


class _Worker(Generic[Task, Result]):
    def __init__(self, context: SpawnContext, work: Work[Task, Result]) -> None:
        self.task: Task | None = None
        self.alive = True
        self._attempt = 0
        self._item = context.RawValue("q", 0)
        self._pipe, remote = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(remote, work, self._item, os.getpid()), daemon=True
        )
        with _interrupts_held():
            self._process.start()
        remote.close()

    @property
    def ends(self) -> list[Any]:
        return [self._pipe, self._process.sentinel]

    @property
    def items(self) -> int:
        return self._item.value if self.task is not None else 0

    def give(self, task: Task, attempt: int) -> None:
        self.task, self._attempt = task, attempt
        self._item.value = 0
        with contextlib.suppress(BrokenPipeError):  # the worker died in the meantime: poll() notices it
            self._pipe.send(task)

    def poll(self) -> Finished[Task, Result] | None:
        """The finished task, if there is one. Sets `alive` to False if the process has ended."""
        gone = not self._process.is_alive()
        try:
            if self.task is not None and self._pipe.poll():
                finished = Finished(self.task, result_of(self._pipe.recv()))
                self.task = None
                return finished
        except (EOFError, ConnectionResetError):
            gone = True
        self.alive = not gone
        return None

    def retry(self, describe: Callable[[Task, int], str]) -> tuple[Task, int]:
        """The task of this dead worker and the number of its next attempt. Raises InputError if none is left."""
        self.join()
        assert self.task is not None
        if self._attempt >= _ATTEMPTS:
            code = self._process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = "; out of memory? try fewer --workers" if code == -signal.SIGKILL else ""
            raise InputError(f"a worker died twice at {describe(self.task, self._item.value)} ({how}{hint})")
        return self.task, self._attempt + 1

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        self._process.join(timeout=10)
        self._pipe.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. A process started inside inherits the mask and never receives it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, work: Work[Any, Any], item: Any, parent: int) -> None:
    """Run tasks from the pipe until it closes."""
    _die_with(parent)

    def report(number: int) -> None:
        item.value = number
        if os.getppid() != parent:
            os._exit(1)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(attempt(work, pipe.recv(), report))


def _die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent dies (on Linux; on other systems `report` notices it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
