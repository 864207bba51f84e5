"""The plan looks at the disk once, and what it refuses ends with exit code 2."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import relic.shards.manifest
import relic.shards.shard_set
import relic.storage.download
from relic.cli import parse
from relic.codec.checkpoint import load_checkpoint
from relic.errors import InputError
from tests.conftest import write_shards
from tests.train.runs import Run, tiny
from train.config import TrainConfig
from train.main import main
from train.plan import make_plan


def test_a_run_opens_each_shard_set_and_each_checkpoint_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read_manifest, load = relic.shards.manifest.read_manifest, torch.load

    def counted_manifest(folder: Path, split: str) -> Any:
        opened.append(split)
        return read_manifest(folder, split)

    def counted_load(file: Any, **options: Any) -> Any:
        opened.append(Path(file.name).name)
        return load(file, **options)

    monkeypatch.setattr(relic.shards.shard_set, "read_manifest", counted_manifest)
    monkeypatch.setattr(torch, "load", counted_load)
    flags = ("--swap_init", "calibrated", "--precondition", "--epochs", "1", "--recon_every", "1")
    assert run(*flags) == 0
    assert opened == ["train", "val"]
    opened.clear()
    assert run(*flags, "--resume", "auto") == 0
    assert opened == ["train", "val", "last.pt"]


def test_a_plan_finds_the_checkpoint_and_whose_it_is(run: Run, crops: Path, tmp_path: Path) -> None:
    assert run("--epochs", "1", folder=tmp_path / "a") == 0
    last = tmp_path / "a" / "checkpoints" / "last.pt"
    given: dict[str, Any] = {
        **yaml.safe_load(last.with_name("config.yaml").read_text()),
        "recon_dir": tmp_path / "recon",
    }
    for save_dir, resume, found, continues in (
        (last.parent, "auto", last, True),
        (tmp_path / "b", "auto", None, False),
        (tmp_path / "b", str(last), last, False),
    ):
        plan = make_plan(TrainConfig(**{**given, "save_dir": save_dir, "resume": resume}))
        assert (plan.resume, plan.continues) == (found, continues)
        assert plan.steps_per_epoch == 3 and plan.train_set.num_samples == 12
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("samples", "images"), [(24, 24), (70, 64)])
def test_calibration_takes_what_there_is_up_to_64(tmp_path: Path, samples: int, images: int) -> None:
    write_shards(tmp_path / "set", "train", (samples,))
    write_shards(tmp_path / "set", "val", (2,))
    config = TrainConfig(shards=str(tmp_path / "set"), save_dir=tmp_path / "run", recon_every=0)
    plan = make_plan(config)
    assert plan.calib_images == images and plan.values["calib_images"] == images


def test_the_record_holds_the_number_of_crops_that_calibration_saw(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run("--swap_init", "calibrated", "--epochs", "0") == 0
    assert "calibrated on 12 crops" in caplog.text
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt").config["calib_images"] == 12


def test_a_set_too_small_to_calibrate_on_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "set", "train", (3,))
    write_shards(tmp_path / "set", "val", (2,))
    argv = tiny(tmp_path / "set", tmp_path, "--batch_size", "1", "--epochs", "0", "--swap_init")
    assert main([*argv, "calibrated"]) == 2
    said = capsys.readouterr().err
    assert "holds only 3 train samples, calibration needs 4 or more; pack more, or use --swap_init naive" in said
    assert main([*argv, "naive"]) == 0


def test_a_host_that_does_not_answer_is_no_wrong_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relic.storage.download, "PAUSE_SECONDS", 0.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # but no process listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/train-000000.tar"
        assert main(["--shards", url, "--save_dir", str(tmp_path / "run"), "--recon_every", "0"]) == 1
    assert "could not be fetched in 3 attempts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_rank_0_says_what_all_ranks_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--shards", str(tmp_path / "missing"), "--save_dir", str(tmp_path / "run")]
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(argv) == 2
        assert capsys.readouterr().err.count("missing: no such folder") == lines


def test_a_batch_that_the_ranks_do_not_divide_is_refused(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = parse(TrainConfig, tiny(crops, tmp_path, "--batch_size", "4"), prog="train")
    with pytest.raises(InputError, match="--batch_size 4: not divisible by the 3 processes"):
        make_plan(config)
