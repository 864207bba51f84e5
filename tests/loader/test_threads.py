"""Threads of the loader: few compute, many wait, tasks begin in order."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pytest

from relic.loader.threads import LoaderThreads

WAIT = 10
T = TypeVar("T")


def submit(threads: LoaderThreads, task: Callable[[], T]) -> "Future[T]":
    future: Future[T] = Future()
    threads.submit(lambda: future.set_result(task()))
    return future


@pytest.mark.timeout(20)
def test_many_wait_and_few_compute() -> None:
    """With 2 cores 6 tasks are in a read at once, and never more than 2 compute."""
    threads = LoaderThreads(2, 6)
    all_wait = threading.Barrier(6)
    lock, computing, most = threading.Lock(), 0, 0

    def compute() -> None:
        nonlocal computing, most
        with lock:
            computing += 1
            most = max(most, computing)
        with lock:
            computing -= 1

    def task() -> int:
        for _ in range(50):
            compute()
        threads.lend_core()
        all_wait.wait(WAIT)
        threads.take_core()
        for _ in range(50):
            compute()
        return threading.get_ident()

    found = {future.result(WAIT) for future in [submit(threads, task) for _ in range(12)]}
    assert len(found) == 6
    assert 1 <= most <= 2
    assert threads.waits == 12
    threads.close()


@pytest.mark.timeout(20)
def test_what_is_not_decoded_goes_on_without_a_core() -> None:
    """After their first read, 5 tasks go on together on one core."""
    threads = LoaderThreads(1, 5, decodes=False)
    together = [threading.Barrier(5) for _ in range(3)]

    def task() -> int:
        for barrier in together:
            threads.lend_core()
            barrier.wait(WAIT)
            threads.take_core()
        return threading.get_ident()

    for _ in range(3):
        assert len({future.result(WAIT) for future in [submit(threads, task) for _ in range(5)]}) == 5
    assert threads.waits == 15
    threads.close()


@pytest.mark.timeout(20)
def test_without_waits_only_as_many_threads_as_cores_are_started() -> None:
    threads = LoaderThreads(2, 32)
    began: list[int] = []
    lock = threading.Lock()

    def task(number: int) -> Callable[[], int]:
        def run() -> int:
            with lock:
                began.append(number)
            return threading.get_ident()

        return run

    found = [submit(threads, task(number)) for number in range(200)]
    assert len({future.result(WAIT) for future in found}) <= 2
    assert all(abs(place - number) <= 1 for place, number in enumerate(began))
    threads.close()
    assert threading.active_count() < 32


@pytest.mark.timeout(20)
def test_a_thread_back_from_a_read_goes_before_new_tasks() -> None:
    threads = LoaderThreads(1, 2)
    order: list[str] = []
    in_read, next_began, read_done = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        threads.lend_core()
        in_read.set()
        assert next_began.wait(WAIT)
        read_done.set()
        threads.take_core()
        order.append("first")

    def second() -> None:
        order.append("second")
        next_began.set()
        assert read_done.wait(WAIT)
        while not threads._num_for_core:
            pass

    futures = [submit(threads, first), submit(threads, second), submit(threads, lambda: order.append("third"))]
    for future in futures:
        future.result(WAIT)
    assert order == ["second", "first", "third"]
    threads.close()


@pytest.mark.timeout(20)
def test_a_task_may_submit_others() -> None:
    threads = LoaderThreads(1, 1)
    assert submit(threads, lambda: submit(threads, lambda: 7)).result(WAIT).result(WAIT) == 7
    threads.close()


@pytest.mark.timeout(20)
def test_close_waits_for_tasks_that_run_and_forgets_the_others() -> None:
    threads = LoaderThreads(1, 3)
    in_read, go_on = threading.Event(), threading.Event()

    def task() -> str:
        threads.lend_core()
        in_read.set()
        assert go_on.wait(WAIT)
        threads.take_core()
        return "done"

    running = [submit(threads, task) for _ in range(3)]
    assert in_read.wait(WAIT)
    while threads.waits < 3:
        pass
    waiting = submit(threads, lambda: "never")
    threading.Timer(0.05, go_on.set).start()
    threads.close()
    assert [future.result(0) for future in running] == ["done"] * 3
    assert not waiting.done()
    assert not any(thread.name == "relic-loader" for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        submit(threads, lambda: None)
