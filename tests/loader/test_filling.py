"""The batches of a plan: filled by threads, in order; errors, the end, and a consumer that goes away."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest

from relic.loader.filling import BatchFilling
from relic.loader.order import Indices
from relic.loader.threads import LoaderTask, LoaderThreads

pytestmark = pytest.mark.timeout(20)
WAIT = 10


def parts_of(number: int, samples: Indices) -> list[Callable[[], int]]:
    return [lambda sample=sample: int(sample) for sample in samples]  # type: ignore[misc]


def joined(number: int, samples: Indices, parts: Sequence[int]) -> tuple[int, list[int]]:
    return number, list(parts)


def taken(filling: BatchFilling[int, tuple[int, list[int]]]) -> tuple[int, list[int]] | None:
    filling.ask(1)
    return filling.take()


@pytest.fixture
def threads() -> Iterator[LoaderThreads]:
    made = LoaderThreads(2, 4)
    yield made
    made.close()


def test_batches_come_in_order_whatever_the_threads_do(threads: LoaderThreads) -> None:
    plan = np.split(np.random.default_rng(0).permutation(6000), range(30, 6000, 30))
    filling = BatchFilling(threads, plan, parts_of, joined)
    filling.ask(9)
    found = [taken(filling) for _ in plan]
    assert found == [(number, samples.tolist()) for number, samples in enumerate(plan)]
    assert [taken(filling) for _ in range(9)] == [None] * 9


def test_the_consumers_thread_does_no_part_of_the_work(threads: LoaderThreads) -> None:
    """Not even the plan: after each step of a training, code that runs for the first time takes four times as long."""
    worked: set[int] = set()

    def note() -> None:
        worked.add(threading.get_ident())

    def plan() -> Iterator[Indices]:
        for _ in range(20):
            note()
            yield np.arange(3)

    def cut(number: int, samples: Indices) -> list[Callable[[], None]]:
        note()
        return [note] * 3

    filling = BatchFilling(threads, plan(), cut, lambda *_: note())
    for _ in range(21):
        filling.ask(1)
        filling.take()
    assert worked and threading.get_ident() not in worked


def test_the_error_of_the_first_part_comes_at_its_batch(threads: LoaderThreads) -> None:
    later_failed = threading.Event()

    def first() -> int:
        assert later_failed.wait(WAIT)
        raise ValueError("first")

    def later() -> int:
        later_failed.set()
        raise ValueError("later")

    def cut(number: int, samples: Indices) -> list[Callable[[], int]]:
        return [first, later] if number == 1 else parts_of(number, samples)

    filling = BatchFilling(threads, [np.arange(2)] * 3, cut, joined)
    filling.ask(3)
    assert filling.take() == (0, [0, 1])
    with pytest.raises(ValueError, match="first"):
        filling.take()
    assert filling.take() == (2, [0, 1])


def test_an_error_of_the_plan_comes_after_the_batches_before_it(threads: LoaderThreads) -> None:
    def plan() -> Iterator[Indices]:
        yield np.arange(2)
        raise ValueError("no more")

    filling = BatchFilling(threads, plan(), parts_of, joined)
    filling.ask(3)
    assert filling.take() == (0, [0, 1])
    with pytest.raises(ValueError, match="no more"):
        filling.take()
    assert taken(filling) is None


def test_a_batch_of_no_samples_is_joined_too(threads: LoaderThreads) -> None:
    assert taken(BatchFilling(threads, [np.arange(0)], parts_of, joined)) == (0, [])


def test_no_more_is_begun_than_the_plan_has(monkeypatch: pytest.MonkeyPatch, threads: LoaderThreads) -> None:
    """Small batches are asked for by the thousand."""
    submitted: list[int] = []
    submit = threads.submit

    def spy(*tasks: LoaderTask) -> None:
        submitted.append(len(tasks))
        submit(*tasks)

    monkeypatch.setattr(threads, "submit", spy)
    filling = BatchFilling(threads, [np.arange(3)] * 2, parts_of, joined)
    filling.ask(5000)
    assert [filling.take() for _ in range(3)] == [(0, [0, 1, 2]), (1, [0, 1, 2]), None]
    assert submitted == [1, 4, 4]


def test_cancelling_waits_for_what_runs_and_begins_nothing_more(threads: LoaderThreads) -> None:
    both_run, go_on = threading.Barrier(3), threading.Event()
    begun: list[int] = []

    def cut(number: int, samples: Indices) -> list[Callable[[], int]]:
        def part() -> int:
            begun.append(number)
            both_run.wait(WAIT)
            assert go_on.wait(WAIT)
            begun.append(number)
            return 0

        return [part] * 2

    filling = BatchFilling(threads, [np.arange(2)] * 5, cut, joined)
    filling.ask(5)
    both_run.wait(WAIT)
    threading.Timer(0.05, go_on.set).start()
    filling.cancel()
    assert begun == [0] * 4
    assert taken(BatchFilling(threads, [np.arange(3)], parts_of, joined)) == (0, [0, 1, 2])


def test_nobody_waits_for_threads_that_have_ended() -> None:
    threads = LoaderThreads(1, 1)
    in_plan, go_on = threading.Event(), threading.Event()

    def plan() -> Iterator[Indices]:
        in_plan.set()
        assert go_on.wait(WAIT)
        yield np.arange(3)

    filling = BatchFilling(threads, plan(), parts_of, joined)
    filling.ask(2)
    assert in_plan.wait(WAIT)
    threading.Timer(0.05, go_on.set).start()
    threads.close()
    filling.abandon()
    with pytest.raises(CancelledError):
        filling.take()
    filling.cancel()
    with pytest.raises(RuntimeError, match="closed"):
        filling.ask(1)
