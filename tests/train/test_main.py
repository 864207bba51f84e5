"""What the command does around a run: a full GPU, and settings that must precede CUDA."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import Run, tiny
from train.learner import Learner

ROOT = Path(__file__).resolve().parents[2]


def test_a_full_gpu_is_one_line_with_the_ways_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(Learner, "step", full)
    assert run() == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the GPU's memory is full" in said and "--batch_size" in said and "CUDA out of memory" in said


def test_deterministic_tells_cublas_before_cuda_starts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    told = []
    set_algorithms = torch.use_deterministic_algorithms
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda on: told.append((on, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    )
    assert run("--epochs", "0") == 0 and told == []
    assert run("--epochs", "0", "--deterministic", "--overwrite") == 0
    assert told and set(told) == {(True, ":4096:8")} and not torch.cuda.is_initialized()
    assert set_algorithms is not torch.use_deterministic_algorithms


def test_a_run_on_the_cpu_saves_no_state_of_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for it starts CUDA."""

    def start() -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    monkeypatch.setattr("torch.cuda.random._lazy_init", start)
    assert run("--epochs", "0") == 0
    assert run("--epochs", "0", "--resume", "auto") == 0


SEEN_AT_IMPORT = """
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch finds:", os.environ.get("CUDA_VISIBLE_DEVICES"))
            raise SystemExit(0)
sys.meta_path.insert(0, Finder())
from train.main import main
main(sys.argv[1:])
"""


@pytest.mark.commands
@pytest.mark.parametrize(("device", "found"), [("cpu", ""), ("auto", "0")])
def test_only_a_run_on_the_cpu_hides_the_gpus_from_torch(crops: Path, tmp_path: Path, device: str, found: str) -> None:
    command = [sys.executable, "-c", SEEN_AT_IMPORT, *tiny(crops, tmp_path, "--device", device)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=100)
    assert done.stdout == f"torch finds: {found}\n", done.stderr
