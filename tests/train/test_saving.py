"""When tables are refreshed, and a disk that fills while a checkpoint is written."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

import train.learner
from relic.codec import entropy
from relic.codec.checkpoint import load_checkpoint
from relic.lock import lock
from tests.train.runs import Run, assert_equal, weights
from train.config import TrainConfig
from train.plan import TrainPlan, make_plan


def test_a_disk_that_fills_while_saving_keeps_the_checkpoint_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--epochs", "1", "--save_every_steps", "1", folder=tmp_path / "whole") == 0
    fsync, saved = os.fsync, []

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if Path(path).name.startswith("last.pt."):
            saved.append(path)
            if len(saved) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run("--epochs", "1", "--save_every_steps", "1", folder=tmp_path / "cut") == 1
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    folder = tmp_path / "cut" / "checkpoints"
    training = load_checkpoint(folder / "last.pt").training
    assert training is not None and training["progress"]["step"] == 1
    assert not list(folder.glob("*.tmp"))
    assert run("--epochs", "1", "--save_every_steps", "1", "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_tables_are_made_once_an_epoch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    refresh = entropy.refresh_tables

    def counted(model: Any, *, solve: bool) -> None:
        made.append(solve)
        refresh(model, solve=solve)

    monkeypatch.setattr(train.learner, "refresh_tables", counted)
    assert run("--epochs", "2") == 0
    assert made == [True] * 3  # before the first step and after each epoch, though up to three files are written


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--epochs", "0") == 0
    folder = tmp_path / "checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with lock(folder):
        assert run("--epochs", "1", "--overwrite") == 2
    assert "another run writes to it" in capsys.readouterr().err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run("--epochs", "0", "--overwrite") == 0


@pytest.mark.parametrize(
    ("flags", "others", "code", "said"),
    [
        ((), ("--seed", "7"), 2, "holds a run; --resume auto continues it"),
        (("--resume", "auto"), ("--seed", "7"), 1, "--seed 0: the run to resume has 7"),
        (("--resume", "auto"), (), 0, "resuming from .*last.pt at step 3"),
    ],
)
def test_a_run_that_began_and_ended_after_the_plan_was_made_is_not_overwritten(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    flags: tuple[str, ...],
    others: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    import train.main

    caplog.set_level("INFO")
    last = tmp_path / "checkpoints" / "last.pt"
    saved: list[bytes] = []

    def plan_and_let_another_run_pass(config: TrainConfig) -> TrainPlan:
        plan = make_plan(config)
        assert plan.resume is None
        with monkeypatch.context() as patch:
            patch.setattr(train.main, "make_plan", make_plan)
            assert run("--epochs", "1", *others) == 0
        saved.append(last.read_bytes())
        return plan

    monkeypatch.setattr(train.main, "make_plan", plan_and_let_another_run_pass)
    assert run("--epochs", "1", *flags) == code
    assert re.search(said, capsys.readouterr().err + caplog.text)
    if code:
        assert [last.read_bytes()] == saved
