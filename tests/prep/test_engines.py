"""What every engine does: results, errors, workers that are killed, progress, and an end in the middle."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prep.engine import Engine, Finished, RunningItems
from prep.pool import local_engine
from relic.errors import InputError
from relic.storage.faults import NetworkError

Report = Callable[[int], None]

pytestmark = pytest.mark.commands


@pytest.fixture(
    scope="module", params=["local", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "local":
        yield local_engine(2)
        return
    pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-cluster.txt")
    import ray.cloudpickle

    from prep.cluster import ray_engine

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else ray writes a token into the user's home
        with ray_engine("local", 2) as connected:
            yield connected


def describe(task: object, item: int) -> str:
    return f"item {item} of {task}"


def results(engine: Engine, work: Callable[..., object], tasks: list[object]) -> list[object]:
    with closing(engine(work, tasks, describe=describe)) as events:
        return [(event.task, event.result) for event in events if isinstance(event, Finished)]


def square(task: int, report: Report) -> int:
    report(0)
    return task * task


def test_each_task_is_done_once(engine: Engine) -> None:
    assert sorted(map(str, results(engine, square, list(range(20))))) == sorted(str((n, n * n)) for n in range(20))
    assert results(engine, square, []) == []


def fail(task: str, report: Report) -> None:
    report(0)
    if task == "input":
        raise InputError("--flag: mend it")
    if task == "system":
        Path("/nowhere/x").read_bytes()
    if task == "network":
        raise NetworkError("s3://bucket/x: could not be reached")
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("input", InputError, r"^--flag: mend it$"),
        ("system", FileNotFoundError, r"No such file or directory: '/nowhere/x'$"),
        ("network", NetworkError, r"^s3://bucket/x: could not be reached$"),
        ("bug", RuntimeError, r"(?s)in fail.*KeyError: 'a bug'"),
    ],
)
def test_errors_are_those_of_the_work(engine: Engine, task: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as found:
        results(engine, fail, [task])
    assert type(found.value) is kind


def die_once(task: Path, report: Report) -> str:
    report(0)
    if not task.exists():
        task.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.name


def test_a_task_whose_worker_was_killed_is_done_again(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "good").touch()
    tasks: list[object] = [tmp_path / "good", tmp_path / "bad"]
    assert sorted(map(str, results(engine, die_once, tasks))) == sorted(str((path, path.name)) for path in tasks)  # type: ignore[attr-defined]


def die_at_three(task: str, report: Report) -> None:
    for item in range(5):
        report(item)
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_always_killed_is_an_error_that_names_the_item(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^a worker died \w+( times)? at item 3 of shard 7 \("):
        results(engine, die_at_three, ["shard 7"])


def two_items_and_wait(task: Path, report: Report) -> None:
    report(1)
    while not task.exists():
        time.sleep(0.05)
        report(2)


def test_the_items_of_running_tasks_are_told(engine: Engine, tmp_path: Path) -> None:
    seen = set()
    with closing(engine(two_items_and_wait, [tmp_path / "end"], describe=describe)) as events:
        for event in events:
            if isinstance(event, RunningItems):
                seen.add(event.running_items)
                if event.running_items == 2:
                    (tmp_path / "end").touch()
    assert seen >= {2}


def hold_and_wait(task: Path, report: Report) -> None:
    part = task.with_suffix(".part")
    with part.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        part.rename(task)
        while True:
            time.sleep(0.05)
            report(0)


def test_leaving_it_ends_the_work(engine: Engine, tmp_path: Path) -> None:
    task = tmp_path / "held"
    events = engine(hold_and_wait, [task], describe=describe)
    while not task.exists():
        next(events)
    with task.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        events.close()
        until = time.monotonic() + 30
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < until, "the task still runs"
                time.sleep(0.05)
