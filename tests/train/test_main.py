"""What the command does around a run: a full GPU, and settings that must precede CUDA."""

import os
from typing import Any

import pytest
import torch

from tests.train.runs import Run
from train.learner import Learner


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
