"""Threads for tasks that read and compute. Many may wait for the storage at once, few compute at once."""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

LoaderTask = Callable[[], None]
"""Keeps its own result, and its own errors: it raises none."""


class LoaderThreads:
    """Runs tasks in the order in which they were submitted, on `cores` cores and at most `most` threads.

    A thread that runs a task holds a core. It lends the core when it waits for a read: between `lend_core` and
    `take_core` another thread runs the next task. So `cores` threads compute, and up to `most` reads are in flight. A
    thread that comes back from its reads gets a core before a further task is begun.

    Without such waits only `cores` threads are ever started, and each goes from task to task without being woken.

    `decodes`: whether a core is needed after a read. If not, a task goes on without one: handing it from thread to
    thread would take longer than what is left to do.
    """

    def __init__(self, cores: int, most: int, *, decodes: bool = True) -> None:
        self.waits = 0
        """Number of times that a core was lent."""
        self._decodes = decodes
        self._cores = cores
        """Cores that no thread holds."""
        self._most = max(cores, most)
        self._tasks: deque[LoaderTask] = deque()
        self._threads: list[threading.Thread] = []
        self._own = threading.local()
        self._closed = False
        lock = threading.Lock()
        self._lock = lock
        self._for_task, self._num_for_task = threading.Condition(lock), 0
        self._for_core, self._num_for_core = threading.Condition(lock), 0

    def submit(self, *tasks: LoaderTask) -> None:
        """Run each of `tasks` in a thread. A task may submit others."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the loader is closed")
            self._tasks.extend(tasks)
            for _ in tasks:
                if not self._take_free_core():
                    break
                self._give_core()

    def close(self) -> None:
        """Forget the tasks that have not started, wait for the others, and end the threads."""
        with self._lock:
            self._closed = True
            self._tasks.clear()
            self._for_task.notify_all()
            self._for_core.notify_all()
        for thread in self._threads:
            thread.join()

    def lend_core(self) -> None:
        """Let another thread compute until this one calls `take_core`. Only a task may call it, any number of times."""
        if self._own.holds_core:
            with self._lock:
                self.waits += 1
                self._own.holds_core = False
                self._give_core()

    def take_core(self) -> None:
        """Compute. A thread that has lent its core waits until one is free."""
        if self._decodes and not self._own.holds_core:
            with self._lock:
                self._own.holds_core = True
                if not self._take_free_core() and not self._closed:
                    self._num_for_core += 1
                    self._for_core.wait()

    def _take_free_core(self) -> bool:
        """Take a core that no thread holds, if there is one. The lock is held."""
        if not self._cores:
            return False
        self._cores -= 1
        return True

    def _give_core(self) -> None:
        """Pass this thread's core on: to a thread back from a read, or to one for the next task. The lock is held."""
        if self._num_for_core:
            self._num_for_core -= 1
            self._for_core.notify()
        elif self._tasks and self._num_for_task:
            self._num_for_task -= 1
            self._for_task.notify()
        elif self._tasks and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name="relic-loader", daemon=True)
            self._threads.append(thread)
            thread.start()
        else:
            self._cores += 1

    def _work(self) -> None:
        """Run tasks. Whoever wakes or starts a thread for a task has given it a core."""
        _avoid_preemption()
        own = self._own
        with self._lock:
            while True:
                own.holds_core = True
                while own.holds_core and self._tasks and not self._num_for_core:
                    task = self._tasks.popleft()
                    self._lock.release()
                    try:
                        task()
                    finally:
                        del task  # it holds the rows of a batch
                        self._lock.acquire()
                    own.holds_core = own.holds_core or self._take_free_core()
                if own.holds_core:
                    self._give_core()
                if not self._closed:
                    self._num_for_task += 1
                    self._for_task.wait()
                if self._closed:
                    return


def _avoid_preemption() -> None:
    """Give this thread the policy SCHED_BATCH: waking it does not take the core of a running thread.

    The consumer wakes the threads when it requests a batch. Without this it could lose its core for a whole task: a
    consumer of 20 ms per batch was measured to wait six times as long.
    """
    if hasattr(os, "sched_setscheduler"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
