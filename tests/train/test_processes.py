"""Runs in separate processes: torchrun, SIGKILL, preemption."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from tests.train.runs import tiny

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Quantisation noise differs between ranks. Rounding with a straight-through gradient makes them comparable.
ROUNDING = """
import sys
sys.path.insert(0, {root!r})
import torch
from compressai.entropy_models import EntropyBottleneck

def rounded(self, inputs, mode, means=None):
    centred = inputs if means is None else inputs - means
    result = inputs + (torch.round(centred) - centred).detach()
    return result

EntropyBottleneck.quantize = rounded
from train.main import main
sys.exit(main(sys.argv[1:]))
"""


def start(
    script: str, argv: list[str], processes: int = 1, *torchrun: str, threads: int = 1
) -> "subprocess.Popen[str]":
    command = [sys.executable, script, *argv]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *torchrun]
        command = [sys.executable, *launcher, script, *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return error


def lines(folder: Path, event: str) -> list[dict[str, float]]:
    text = (folder / "checkpoints" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def losses_and_gradients(folder: Path) -> list[float]:
    """Loss and gradient norm of each step, then the loss of each validation."""
    steps = lines(folder, "train")
    return [line[name] for name in ("loss", "grad_norm") for line in steps] + [
        line["loss"] for line in lines(folder, "validate")
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.pt").model


def test_two_and_four_processes_train_like_one(crops: Path, tmp_path: Path) -> None:
    script = tmp_path / "rounding.py"
    script.write_text(ROUNDING.format(root=str(ROOT)))
    for count in (1, 2, 4):
        argv = tiny(crops, tmp_path / str(count), "--log_every", "1", "--epochs", "1", "--lr", "1e-4")
        finish(start(str(script), argv, count))
    one = losses_and_gradients(tmp_path / "1")
    assert len(one) == 8
    for processes in ("2", "4"):
        assert losses_and_gradients(tmp_path / processes) == pytest.approx(one, rel=1e-4)
        theirs = weights(tmp_path / processes)
        for name, tensor in weights(tmp_path / "1").items():
            if name.startswith(("g_a", "g_s")):
                assert torch.allclose(theirs[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("ranges", ["learned", "moving_average"])
def test_two_processes_learn_the_ranges_of_one(crops: Path, tmp_path: Path, ranges: str) -> None:
    """In the moving average the batch's largest value counts, whichever rank has it."""
    script = tmp_path / "rounding.py"
    script.write_text(ROUNDING.format(root=str(ROOT)))
    found = []
    for count in (1, 2):
        flags = ("--qat", "true", "--qat_ranges", ranges, "--log_every", "1", "--epochs", "4", "--lr", "1e-4")
        finish(start(str(script), tiny(crops, tmp_path / str(count), *flags), count))
        quantization = load_checkpoint(tmp_path / str(count) / "checkpoints" / "last.pt").quantization
        assert quantization is not None
        found.append(quantization["activation_steps"])
    one, two = found
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-5)
    assert losses_and_gradients(tmp_path / "2") == pytest.approx(losses_and_gradients(tmp_path / "1"), rel=2e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_sigkill_at_random_steps_and_resume_equals_the_uninterrupted_run(
    crops: Path, tmp_path: Path, threads: int
) -> None:
    steps = sorted(random.sample(range(2, 28), 5))
    flags = ("--save_every_steps", "1", "--log_every", "1", "--epochs", "10")
    script = str(ROOT / "train" / "main.py")
    finish(start(script, tiny(crops, tmp_path / "whole", *flags), threads=threads))
    metrics = tmp_path / "cut" / "checkpoints" / "metrics.jsonl"
    resumed_at = []
    for wanted in (*steps, None):
        process = start(script, tiny(crops, tmp_path / "cut", *flags, "--resume", "auto"), threads=threads)
        while wanted and process.poll() is None:
            if metrics.exists() and f'"train", "step": {wanted},' in metrics.read_text():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        _, error = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if wanted else 0), error[-3000:]
        resumed_at += [int(number) for number in re.findall(r"resuming from .* at step (\d+)", error)]
    # Each started where the one before was killed, or one step earlier: that step was logged but not saved.
    assert len(resumed_at) == 5, steps
    assert all(found >= killed - 1 for found, killed in zip(resumed_at, steps, strict=True)), (resumed_at, steps)
    assert [line["step"] for line in lines(tmp_path / "cut", "train")] == [*range(1, 31)]
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_sigterm_on_two_ranks_stops_both_at_one_step_and_resumes(crops: Path, tmp_path: Path) -> None:
    argv = tiny(crops, tmp_path, "--epochs", "200", "--log_every", "1")
    process = start(str(ROOT / "train" / "main.py"), argv, 2)
    metrics = tmp_path / "checkpoints" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it to both ranks
    _, error = process.communicate(timeout=120)
    assert "stopped at step" in error
    training = load_checkpoint(tmp_path / "checkpoints" / "last.pt").training
    assert training is not None and training["progress"]["step"] >= 3 and len(training["random"]) == 2


def test_a_killed_rank_is_restarted_by_torchrun_and_the_run_finishes(crops: Path, tmp_path: Path) -> None:
    flags = ("--epochs", "6", "--log_every", "1", "--save_every_steps", "1")
    script = str(ROOT / "train" / "main.py")
    finish(start(script, tiny(crops, tmp_path / "whole", *flags), 2))
    process = start(script, tiny(crops, tmp_path / "cut", *flags), 2, "--max-restarts", "1")
    metrics = tmp_path / "cut" / "checkpoints" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 4,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    error = finish(process)
    assert "resuming from" in error and "at step 0" not in error
    assert [line["step"] for line in lines(tmp_path / "cut", "train")] == [*range(1, 19)]
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
