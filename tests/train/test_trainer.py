"""Whole runs on a tiny codec: what they leave behind, and that interrupted ones equal those that were not."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from compressai.models import FactorizedPrior, FactorizedPriorReLU
from PIL import Image

from relic.codec.checkpoint import load_checkpoint
from tests.conftest import write_shards
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, weights
from train.main import main


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


def test_the_best_stays_the_start_where_training_makes_it_worse(run: Run, tmp_path: Path) -> None:
    assert run("--epochs", "0", folder=tmp_path / "start") == 0
    assert run("--lr", "1", "--lr_warmup_steps", "0", "--epochs", "1") == 0
    before, after = (line["loss"] for line in lines(tmp_path, "validate"))
    assert before < after
    best = load_checkpoint(tmp_path / "checkpoints" / "best_loss.pt")
    assert best.metrics["loss"] == before
    assert_equal(best.model, weights(tmp_path / "start"))


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
    assert "the entropy bottleneck is frozen" in caplog.text
    assert run("--loss_type", "recon", "--epochs", "0", folder=tmp_path / "untrained") == 0
    before, after = weights(tmp_path / "untrained"), weights(tmp_path)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("entropy_bottleneck.")} == same


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
    assert run("--epochs", "3", "--resume", "auto") == 2
    assert "--epochs 3: the run to resume has 1" in capsys.readouterr().err
