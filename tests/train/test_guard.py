"""The guard: values that are not finite, weights over the limit, and signals to stop."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from tests.train.runs import Run, assert_equal, weights
from train.learner import Learner


def test_a_value_that_is_not_finite_stops_the_run_by_the_next_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Learner.step
    reached = []

    def poisoned(self: Learner, batch: Any, number: int) -> Any:
        reached.append(number)
        if number == 3:
            batch.images[0, 0, 0, 0] = float("nan")
        return step(self, batch, number)

    monkeypatch.setattr(Learner, "step", poisoned)
    assert run("--save_every_steps", "1") == 1
    assert max(reached) <= 4
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 3: " in said and "train0" in said and "--local_fp32" in said and "--max_grad_norm" in said
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert checkpoint.training is not None and checkpoint.training["progress"]["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.model.values())


def test_weights_that_left_all_bounds_are_never_saved(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--lr", "1e30", "--save_every_steps", "1") == 1
    assert "step 0: the weights after it" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_sigterm_saves_and_ends_cleanly(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder=tmp_path / "whole") == 0
    step = Learner.step

    def signalled(self: Learner, batch: Any, number: int) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", signalled)
        assert run(folder=tmp_path / "cut") == 0
    training = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt").training
    assert training is not None and 2 <= training["progress"]["step"] <= 3
    assert run("--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
