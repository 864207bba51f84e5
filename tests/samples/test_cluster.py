"""The scripts for clusters: the one for Slurm with stand-ins for its commands, and the file for SkyPilot."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from relic.cli import parse
from tests.conftest import write_shards
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "samples" / "cluster" / "train.sbatch"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & task=$!
echo $task >> {folder}/tasks
trap '' USR1
wait $task
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=USR1 77" ] && kill -USR1 $(cat {folder}/tasks)
"""
"""Slurm's reaches the tasks of all machines, and not the batch script. A signal to srun does not reach them."""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && printf 'a\\nb\\n' || echo "$@" >> {folder}/asked
"""


def submit(folder: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """Start the script as Slurm starts it on the first of two machines."""
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "tasks").unlink(missing_ok=True)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    slurm = {"JOB_ID": "77", "JOB_NODELIST": "[a-b]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "1", "CPUS_PER_TASK": "1"}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        **{"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "PORT": str(port)},
        **{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([SBATCH, *flags], cwd=ROOT, env=environment, stderr=log, start_new_session=True)


def steps(folder: Path) -> list[int]:
    metrics = folder / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [line["step"] for line in map(json.loads, lines) if line["event"] == "train"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_before_the_time_limit_the_run_saves_and_is_queued_again_and_then_goes_on(tmp_path: Path) -> None:
    write_shards(tmp_path / "crops", "train", (7, 5), seed=1)
    write_shards(tmp_path / "crops", "val", (3, 1), seed=2)
    flags = ["--shards", str(tmp_path / "crops"), "--save_dir", str(tmp_path / "run"), "--pretrained", "none"]
    flags += ["--channels", "4,6", "--replace_parts", "all", "--epochs", "12", "--batch_size", "4", "--device", "cpu"]
    flags += ["--recon_every", "0", "--log_every", "1", "--contexts", "false"]
    process = submit(tmp_path, *flags)
    try:
        while len(steps(tmp_path)) < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B: says
        assert process.wait(120) == 0
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
        log = (tmp_path / "log").read_text()
        assert "Traceback" not in log
        stopped = re.search(r"stopped at step (\d+)", log)
        assert stopped and 3 <= int(stopped[1]) < 36
        process = submit(tmp_path, *flags)
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    assert f"resuming from {tmp_path / 'run' / 'last.pt'} at step {stopped[1]}" in (tmp_path / "log").read_text()
    # The step in which a run is stopped has no line.
    assert steps(tmp_path) == [step for step in range(1, 37) if step != int(stopped[1])]
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


def test_skypilots_file_starts_train_with_flags_that_it_takes() -> None:
    task = yaml.safe_load((SBATCH.parent / "skypilot.yaml").read_text())
    assert {"num_nodes", "resources", "file_mounts", "setup", "run"} <= set(task)
    _, _, flags = task["run"].replace("\\\n", " ").partition("train/main.py")
    config = parse(TrainConfig, shlex.split(flags), prog="train")
    assert config.resume == "auto"
    machines, gpus = task["num_nodes"], int(task["resources"]["accelerators"].split(":")[1])
    assert config.batch_size % (machines * gpus) == 0
