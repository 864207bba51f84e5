"""One of two ranks fails alone, while the other waits for it: its line is printed and both end.

gloo leaves a group at once, NCCL only when all ranks do. A stand-in makes gloo do the same.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import write_shards
from tests.train.runs import tiny

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAILING = """
import atexit, os, resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
folder, failing = Path({folder!r}), sys.argv.pop(1)
rank = os.environ["RANK"]
(folder / f"pid-{{rank}}").write_text(str(os.getpid()))

import torch
import torch.distributed as dist
from train.learner import Learner
from train.main import main

def leave_together():
    (folder / f"left-{{rank}}").touch()
    while len(list(folder.glob("left-*"))) < 2:
        time.sleep(0.05)

dist.destroy_process_group = leave_together
atexit.register(leave_together)  # at Python's exit the group is torn down too

def fail():
    (folder / "failing").touch()
    if failing == "cut shard" and rank == "1":
        (folder / "shards-1" / "train-000000.tar").open("r+b").truncate(5000)
    if failing == "full disk" and rank == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    if failing == "full memory" and rank == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

step = Learner.step

def step_or_fail(self, batch, number, epoch):
    if number == 4:
        fail()
    return step(self, batch, number, epoch)

Learner.step = step_or_fail
sys.exit(main(["--shards", str(folder / f"shards-{{rank}}"), *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("failing", "line"),
    [
        ("cut shard", "train-000000.tar: sample train0"),
        ("full disk", "File too large"),
        ("full memory", "the GPU's memory is full"),
    ],
)
def test_the_line_is_printed_and_all_ranks_end(tmp_path: Path, failing: str, line: str) -> None:
    for rank in (0, 1):
        write_shards(tmp_path / f"shards-{rank}", "train", (12,), seed=1)
        write_shards(tmp_path / f"shards-{rank}", "val", (4,), seed=2)
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(root=str(ROOT), folder=str(tmp_path)))
    argv = tiny(tmp_path, tmp_path, "--epochs", "50", "--save_every_steps", "5")[2:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [*launcher, str(script), failing, *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (tmp_path / "failing").exists():
            assert process.poll() is None
            time.sleep(0.05)
        _, error = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode != 0
    assert any(each.startswith("train/main.py: error: ") and line in each for each in error.splitlines()), error
    assert not any(tmp_path.glob("left-*"))
    for rank in (0, 1):
        assert not Path("/proc", (tmp_path / f"pid-{rank}").read_text()).exists()
