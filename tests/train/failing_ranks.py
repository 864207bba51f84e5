"""Start two ranks, of which one fails alone while the other waits for it.

gloo leaves a group at once, NCCL only when all ranks do. A stand-in makes gloo do the same.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import write_shards
from tests.train.runs import tiny

ROOT = Path(__file__).resolve().parents[2]

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

if not torch.cuda.is_available():
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

def step_or_fail(self, batch, number):
    if number == 4:
        fail()
    return step(self, batch, number)

Learner.step = step_or_fail
sys.exit(main(["--shards", str(folder / f"shards-{{rank}}"), *sys.argv[1:]]))
"""


def fail_alone(folder: Path, failing: str, device: str = "cpu") -> tuple[int, str]:
    """Train with two ranks until one fails; 60 s later all must have ended. Return torchrun's exit code and errors."""
    for rank in (0, 1):
        write_shards(folder / f"shards-{rank}", "train", (12,), seed=1)
        write_shards(folder / f"shards-{rank}", "val", (4,), seed=2)
    script = folder / "failing.py"
    script.write_text(FAILING.format(root=str(ROOT), folder=str(folder)))
    argv = tiny(folder, folder, "--epochs", "50", "--save_every_steps", "5", "--device", device)[2:]
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
        while not (folder / "failing").exists():
            assert process.poll() is None
            time.sleep(0.05)
        _, error = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    for rank in (0, 1):
        assert not Path("/proc", (folder / f"pid-{rank}").read_text()).exists()
    return process.returncode, error


def printed_alone(error: str, line: str) -> bool:
    """Whether a line of the trainer holds `line`."""
    return any(each.startswith("train/main.py: error: ") and line in each for each in error.splitlines())


FAULTS = [
    ("cut shard", "train-000000.tar: sample train0"),
    ("full disk", "File too large"),
    ("full memory", "the GPU's memory is full"),
]
