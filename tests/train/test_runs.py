"""Whole runs on a tiny codec: what they leave behind, and that interrupted ones equal those that were not."""

import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from compressai.models import FactorizedPrior, FactorizedPriorReLU
from PIL import Image

from relic.codec.checkpoint import load_checkpoint
from tests.conftest import write_shards
from tests.train.conftest import Run
from train.learner import Learner
from train.main import main


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.pt").model


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    text = (folder / "checkpoints" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_leaves_checkpoints_metrics_config_and_pictures(run: Run, tmp_path: Path) -> None:
    assert run("--log_every", "1", "--recon_every", "1", "--recon_count", "2") == 0
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == {"last.pt", "best_msssim.pt", "best_loss.pt", "metrics.jsonl", "config.yaml"}
    FactorizedPriorReLU(4, 6).load_state_dict(weights(tmp_path), strict=True)
    steps = lines(tmp_path, "train")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["images_seen"] for line in steps] == [4, 8, 12, 16, 20, 24]
    assert {"loss", "psnr_db", "ms_ssim", "bpp", "lr", "images_per_second", "wait_share"} <= steps[0].keys()
    validations = lines(tmp_path, "validate")
    assert [line["epoch"] for line in validations] == [0, 1, 2]
    best = load_checkpoint(tmp_path / "checkpoints" / "best_loss.pt")
    assert best.metrics["loss"] == min(line["loss"] for line in validations)
    assert best.training is None and load_checkpoint(tmp_path / "checkpoints" / "last.pt").training is not None
    pictures = sorted(str(path.relative_to(tmp_path / "recon")) for path in (tmp_path / "recon").rglob("*.png"))
    assert pictures == [f"{name}/00{i}.png" for name in ("e001", "e002", "origin", "pre_e000") for i in (0, 1)]
    originals = write_shards(tmp_path / "again", "val", (3, 1), seed=2)
    for number, pixels in zip((0, 1), originals.values(), strict=False):
        with Image.open(tmp_path / "recon" / "origin" / f"00{number}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
    config = yaml.safe_load((tmp_path / "checkpoints" / "config.yaml").read_text())
    assert config["batch_size"] == 4 and config["replace_parts"] == "all"


def test_the_saved_config_gives_the_same_run(run: Run, tmp_path: Path) -> None:
    assert run(folder=tmp_path / "a") == 0
    config = tmp_path / "a" / "checkpoints" / "config.yaml"
    again = ["--config", str(config), "--save_dir", str(tmp_path / "b" / "checkpoints")]
    assert main(again) == 0
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_no_epochs_saves_and_validates_the_swapped_model(run: Run, tmp_path: Path) -> None:
    assert run("--epochs", "0", "--replace_parts", "encoder") == 0
    assert len(lines(tmp_path, "validate")) == 1
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert checkpoint.architecture.replaced == "encoder"
    FactorizedPrior(4, 6)  # the unswapped class has other tensors, so only ours builds it
    checkpoint.build()


def test_recon_freezes_the_entropy_bottleneck_and_says_so(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run("--loss_type", "recon", "--epochs", "1") == 0
    assert "a recon loss does not reach it: the entropy bottleneck" in caplog.text
    assert run("--loss_type", "recon", "--epochs", "0", folder=tmp_path / "untrained") == 0
    before, after = weights(tmp_path / "untrained"), weights(tmp_path)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("entropy_bottleneck.")} == same


class Killed(BaseException):
    """Stands for the end of the process: nothing in the trainer catches it."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    step = Learner.step

    def counted(self: Learner, batch: Any, number: int, epoch: int) -> Any:
        if number == steps:
            raise Killed
        return step(self, batch, number, epoch)

    monkeypatch.setattr(Learner, "step", counted)


@pytest.mark.parametrize(("killed_at", "sched"), [(1, "cosine"), (4, "onecycle"), (5, "plateau")])
def test_a_resumed_run_equals_the_uninterrupted_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, sched: str
) -> None:
    flags = ("--sched", sched, "--save_every_steps", "1", "--log_every", "1")
    assert run(*flags, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, killed_at)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt").training["progress"]["step"] == killed_at  # type: ignore[index]
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    timing = ("images_per_second", "wait_share")
    whole, cut = (
        [{k: v for k, v in line.items() if k not in timing} for line in lines(tmp_path / name, "train")]
        for name in ("whole", "cut")
    )
    assert whole == cut


def test_lines_past_the_resumed_step_are_cut(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--save_every_steps", "2", "--log_every", "1")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(*flags)
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3]
    assert run(*flags, "--resume", "auto") == 0
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]


def test_sigterm_saves_and_ends_cleanly(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder=tmp_path / "whole") == 0
    step = Learner.step

    def signalled(self: Learner, batch: Any, number: int, epoch: int) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", signalled)
        assert run(folder=tmp_path / "cut") == 0
    training = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt").training
    assert training is not None and 2 <= training["progress"]["step"] <= 3
    assert run("--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_value_that_is_not_finite_stops_the_run_by_the_next_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Learner.step
    reached = []

    def poisoned(self: Learner, batch: Any, number: int, epoch: int) -> Any:
        reached.append(number)
        if number == 3:
            batch.images[0, 0, 0, 0] = float("nan")
        return step(self, batch, number, epoch)

    monkeypatch.setattr(Learner, "step", poisoned)
    assert run("--save_every_steps", "1") == 1
    assert max(reached) <= 4
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 3: " in said and "train0" in said and "--local_fp32" in said and "--max_grad_norm" in said
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert checkpoint.training is not None and checkpoint.training["progress"]["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.model.values())


@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_mixed_precision_runs(run: Run, tmp_path: Path, amp_dtype: str) -> None:
    assert run("--amp", "true", "--amp_dtype", amp_dtype, "--local_fp32", "all_normexp", "--epochs", "1") == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_a_resume_with_another_schedule_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--epochs", "1") == 0
    assert run("--epochs", "3", "--resume", "auto") == 2
    assert "--epochs 3: the run to resume has 1" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "config.yaml").unlink()  # the checkpoint holds the flags too
    assert run("--epochs", "3", "--resume", "auto") == 1
    assert "--epochs 3: the run to resume has 1" in capsys.readouterr().err


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
    """Notes what W&B is told; `fail_at` makes the log call of that number fail."""

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


def test_weights_that_left_all_bounds_are_never_saved(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--lr", "1e30", "--save_every_steps", "1") == 1
    assert "step 0: it left weights" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
