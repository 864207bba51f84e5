"""Two launchers, as on two machines, whose store is a third process: either is lost, and the run goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import open_shard_set
from tests.conftest import write_shards
from tests.train.runs import tiny

ROOT = Path(__file__).resolve().parents[2]
BATCH, EPOCHS = 4, 3

RECORDED = """
import json, os, sys
sys.path.insert(0, {root!r})
from train.learner import Learner
from train.main import main

step = Learner.step

def recorded(self, batch, number):
    values = step(self, batch, number)
    with open(os.path.join({folder!r}, f"keys-{{os.environ['MACHINE']}}-{{os.getpid()}}.jsonl"), "a") as file:
        file.write(json.dumps([number, int(os.environ["WORLD_SIZE"]), batch.keys]) + "\\n")
    return values

Learner.step = recorded
sys.exit(main())
"""
STORE = """
import signal, sys, torch.distributed as dist
store = dist.TCPStore("localhost", int(sys.argv[1]), is_master=True, wait_for_workers=False)
signal.pause()
"""


class Step(NamedTuple):
    """What one process recorded of one step."""

    number: int
    world_size: int
    keys: list[str]


@contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def workers_of(folder: Path, machine: int) -> list[int]:
    return [int(path.stem.split("-")[2]) for path in folder.glob(f"keys-{machine}-*.jsonl")]


def steps_of(folder: Path) -> list[Step]:
    lines = [line for path in folder.glob("keys-*.jsonl") for line in path.read_text().splitlines()]
    return [Step(*json.loads(line)) for line in lines if line.endswith("]]")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_goes_on_when_a_machine_is_lost(tmp_path: Path, lost: int) -> None:
    """In 60 s. Each step's batch holds the keys that one process would have read."""
    crops = tmp_path / "crops"
    write_shards(crops, "train", (41, 40), seed=1)
    write_shards(crops, "val", (3, 1), seed=2)
    script = tmp_path / "recorded.py"
    script.write_text(RECORDED.format(root=str(ROOT), folder=str(tmp_path)))
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    flags = ("--epochs", str(EPOCHS), "--batch_size", str(BATCH), "--save_every_steps", "5", "--contexts", "false")
    with ExitStack() as stack:
        stack.enter_context(started(["-c", STORE, port], tmp_path / "store.log"))
        launchers = [
            stack.enter_context(
                started(
                    [
                        *("-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1"),
                        *("--max-restarts", "3", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"),
                        *("--rdzv_id", "job", "--rdzv_conf", "is_host=false,last_call_timeout=5"),
                        *("--local_addr", f"127.0.0.{machine + 1}", str(script), *tiny(crops, tmp_path, *flags)),
                    ],
                    tmp_path / f"machine-{machine}.log",
                    MACHINE=str(machine),
                )
            )
            for machine in (0, 1)
        ]
        stack.callback(end_workers, tmp_path)
        await_step(tmp_path, 12, world_size=2, seconds=240)
        launchers[lost].kill()
        for worker in workers_of(tmp_path, lost):
            os.kill(worker, signal.SIGKILL)
        await_step(tmp_path, 0, world_size=1, seconds=60)
        other = launchers[1 - lost]
        assert other.wait(240) == 0, (tmp_path / f"machine-{1 - lost}.log").read_text()[-3000:]
    assert_global_batches(crops, steps_of(tmp_path))


def await_step(folder: Path, number: int, *, world_size: int, seconds: float) -> None:
    """Wait until a process of a world of that size took step `number` or a later one."""
    until = time.monotonic() + seconds
    while not any(step.number >= number and step.world_size == world_size for step in steps_of(folder)):
        logs = {log.name: log.read_text()[-2000:] for log in folder.glob("machine-*.log")}
        assert time.monotonic() < until, logs
        time.sleep(0.1)


def end_workers(folder: Path) -> None:
    """torchrun starts each in a session of its own, so they would outlive a launcher that was killed."""
    for machine in (0, 1):
        for worker in workers_of(folder, machine):
            with suppress(OSError):  # it has ended
                if str(folder) in Path(f"/proc/{worker}/cmdline").read_text():
                    os.kill(worker, signal.SIGKILL)


def assert_global_batches(crops: Path, steps: list[Step]) -> None:
    shards = open_shard_set(crops, "train")
    with ShardLoader(shards, batch_size=BATCH) as loader:
        expected = [
            sorted(batch.keys)
            for epoch in range(EPOCHS)
            for batch in loader.batches(train_batches(epoch_order(shards.samples, 0, epoch), BATCH, 0, 1))
        ]
    assert {step.number for step in steps} == set(range(len(expected)))
    alone = {step.number: sorted(step.keys) for step in steps if step.world_size == 1}
    # From the last checkpoint before the loss to the end.
    assert alone == dict(enumerate(expected[min(alone) :], min(alone)))
    for number in range(min(alone)):
        shared = [step.keys for step in steps if step.number == number]
        assert len(shared) == 2 and sorted(shared[0] + shared[1]) == expected[number]
