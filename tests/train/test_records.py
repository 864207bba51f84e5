"""The records of a run: lines of metrics.jsonl, which a resume cuts, and calls of W&B."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import Killed, Run, lines, stop_after


def test_lines_past_the_resumed_step_are_cut(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--save_every_steps", "2", "--log_every", "1")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(*flags)
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3]
    assert run(*flags, "--resume", "auto") == 0
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]


def test_wandb_offline_and_a_wandb_that_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert run("--wandb", "--epochs", "1", "--log_every", "1", folder=tmp_path / "a") == 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

    def fail(**_: Any) -> None:
        raise RuntimeError("no such host")

    monkeypatch.setattr("wandb.init", fail)
    assert run("--wandb", "--epochs", "1", folder=tmp_path / "b") == 0
    assert "W&B is off for this run: no such host" in caplog.text


class FakeWandb(types.ModuleType):
    """Records the calls of W&B. The log call with the number `fail_at` fails."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.axes: list[tuple[str, str]] = []
        self.finished, self.id, self._fail_at = 0, "abc", fail_at

    def init(self, **given: Any) -> "FakeWandb":
        self.begun.append(given)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        if len(self.logged) == self._fail_at:
            raise ConnectionError("the server has gone")
        self.logged.append(({name: value for name, value in values.items() if name != "step"}, values["step"]))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, path: str, caption: str) -> str:
        assert Path(path).is_file()
        return caption


def test_wandb_is_told_config_curves_gradients_and_pictures_and_goes_on_after_a_resume(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--wandb", "--log_every", "1", "--save_every_steps", "1", "--recon_every", "1", "--recon_count", "2")
    fake = FakeWandb()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*flags)
    again = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", again)
    assert run(*flags, "--resume", "auto") == 0
    assert fake.begun[0]["config"]["lr"] == 1e-3 and fake.begun[0]["id"] is None
    assert again.begun[0]["id"] == "abc" and again.finished == 1
    assert fake.axes == again.axes == [("*", "step")]
    curves = {name for values, _ in again.logged for name in values}
    assert {"train/loss", "train/grad_norm", "train/lr", "train/wait_share", "validate/psnr_db"} <= curves
    assert ({"recon": ["000", "001"]}, 6) in again.logged and ({"recon": ["000", "001"]}, 0) in fake.logged
    steps = [step for values, step in again.logged if "train/loss" in values]
    assert steps == [5, 6]


def test_a_wandb_that_fails_on_the_way_does_not_end_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb(fail_at=3)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert run("--wandb", "--log_every", "1", "--epochs", "1") == 0
    assert len(fake.logged) == 3 and "W&B is off from here on: the server has gone" in caplog.text
