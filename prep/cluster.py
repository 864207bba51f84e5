"""The engine of a Ray cluster: one Ray task per task. Only --engine ray imports this file, and only it imports ray.

Ray gives a task whose worker or node died to another node, three times. A node that is believed dead may only be slow:
then two attempts pack one shard, see `prep.split_folder`. The nodes get the code of this checkout.
"""

import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prep.encoding import imaging_libraries
from prep.engine import Engine, Finished, RunningItems, Task, TaskOutcome, Work, attempt, result_of
from prep.images import LocalImages
from prep.tasks import ShardTask
from relic.errors import InputError

_ROOT = Path(__file__).resolve().parents[1]
_RETRIES = 3
_SUBMITTED_PER_CPU = 4
_TICK_SECONDS = 0.5
_CANCEL_SECONDS = 30.0
_REACH_SECONDS = 20.0


@contextlib.contextmanager
def ray_engine(address: str, workers: int) -> Iterator[Engine]:
    """The engine that runs on the cluster at `address`, with at most `workers` tasks at once; 0: as many as it can."""
    packages = [str(_ROOT / name) for name in ("prep", "relic")]
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _reach(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(
            address=address,
            runtime_env={"py_modules": packages, "excludes": ["__pycache__", "*.pt"]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        way_out = "start one with `ray start --head`, or see docs/scale.md"
        raise InputError(
            f"--ray_address {address}: no Ray cluster answers ({_first_line(error)}); {way_out}"
        ) from error
    try:
        signal.signal(signal.SIGTERM, terminate)  # ray.init sets a handler of its own
        yield functools.partial(run_on_ray, workers=workers)
    finally:
        ray.shutdown()


def run_on_ray(
    work: Work[Any, Any], tasks: Sequence[Task], *, workers: int, describe: Callable[[Task, int], str]
) -> Generator[Finished[Task, Any] | RunningItems, None, None]:
    """Run the tasks on the cluster that this process is connected to, see `prep.engine.Engine`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    notes = ray.remote(_Notes).options(num_cpus=0, scheduling_strategy=here).remote()
    on_node = ray.remote(_run).options(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")
    waiting = deque(range(len(tasks)))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            most = workers or max(1, _SUBMITTED_PER_CPU * int(ray.cluster_resources().get("CPU", 0)))
            while waiting and len(running) < most:
                number = waiting.popleft()
                running[on_node.remote(work, tasks[number], number, notes)] = number
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=_TICK_SECONDS)
            for ref in done:
                number = running.pop(ref)
                try:
                    outcome = ray.get(ref)
                except ray.exceptions.RayError as error:
                    item = ray.get(notes.item_of.remote(number))
                    died = f"a worker died {1 + _RETRIES} times at {describe(tasks[number], item)}"
                    raise InputError(f"{died} ({_first_line(error)})") from error
                yield Finished(tasks[number], result_of(outcome))
            yield RunningItems(sum(ray.get(notes.items_of.remote(list(running.values())))))
    finally:
        for ref in running:
            ray.cancel(ref)  # not by force: a task that answers meanwhile then ends this process inside Ray
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_SECONDS)
        ray.kill(notes)


class _Notes:
    """The item that each running task is at. An actor beside the process that waits for the tasks."""

    def __init__(self) -> None:
        self._attempts: dict[int, int] = {}
        self._items: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """Note that an attempt of a task begins. Returns how many began, with this one."""
        self._items[number] = 0
        self._attempts[number] = self._attempts.get(number, 0) + 1
        return self._attempts[number]

    def note(self, number: int, item: int) -> None:
        self._items[number] = item

    def item_of(self, number: int) -> int:
        return self._items.get(number, 0)

    def items_of(self, numbers: list[int]) -> list[int]:
        return [self.item_of(number) for number in numbers]


def _run(work: Work[Task, Any], task: Task, number: int, notes: Any) -> TaskOutcome:
    """Run a task on a node. The first attempt notes its item twice a second, a later one each before its work."""
    attempts = ray.get(notes.begin.remote(number))
    noted = time.monotonic()

    def report(item: int) -> None:
        nonlocal noted
        if attempts > 1:
            ray.get(notes.note.remote(number, item))
        elif time.monotonic() > noted + _TICK_SECONDS:
            noted = time.monotonic()
            notes.note.remote(number, item)

    return attempt(_checked, (work, task), report)


def _checked(work_and_task: tuple[Work[Task, Any], Task], report: Callable[[int], None]) -> Any:
    """Run the task, unless it is a shard that this node would pack otherwise."""
    work, task = work_and_task
    if isinstance(task, ShardTask):
        here, wanted = imaging_libraries(task.packing.encoding), task.packing.libraries
        others = [f"{name} {here.get(name)}, not {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
        if others:
            raise InputError(f"node {socket.gethostname()}: has {', '.join(others)}; install the same everywhere")
        images = [task.images.path] if isinstance(task.images, LocalImages) else []
        for folder in (*images, task.out_dir):
            if not folder.is_dir():
                raise InputError(f"node {socket.gethostname()}: has no folder {folder}; mount it on every node")
    return work(task, report)


def _reach(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT. ray itself would try for ever."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
