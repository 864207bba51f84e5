"""The plan looks at the disk once, and what it refuses ends with exit code 2."""

import functools
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

import relic.storage.download
from relic.cli import parse
from relic.codec.checkpoint import load_checkpoint
from relic.errors import InputError
from tests.conftest import set_ranks, write_shards
from tests.train.runs import Run, lines, tiny
from train.config import TrainConfig
from train.main import main
from train.plan import make_plan
from train.resumed_flags import check_resumed


def test_a_run_opens_each_shard_set_and_each_checkpoint_once(run: Run, crops: Path, opened: list[Path]) -> None:
    # Contexts are counted on the checkpoints that a run wrote. Here those are counted that it reads.
    flags = ("--swap_init", "calibrated", "--precondition", "--epochs", "1", "--recon_every", "1", "--contexts=false")
    manifests = sorted(crops.glob("*.json"))
    for resume, checkpoints in (((), []), (("--resume", "auto"), ["last.pt"])):
        opened.clear()
        assert run(*flags, *resume) == 0
        assert sorted(path for path in opened if path in manifests) == manifests
        assert [path.name for path in opened if path.suffix == ".pt"] == checkpoints


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
    assert plan.calib_images == images


def test_a_default_is_recorded_as_a_default_beside_what_it_came_to(
    run: Run, crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So that `--config config.yaml` takes what there is from a set of another size too."""
    caplog.set_level("INFO")
    folder = tmp_path / "checkpoints"
    assert run("--swap_init", "calibrated", "--epochs", "0") == 0
    assert "calibrated on 12 crops" in caplog.text
    size = sum(tar.stat().st_size for tar in crops.glob("train-*.tar"))
    assert f"train shards ({size / 1e9:.3g} GB) are" in caplog.text and "val shards (" in caplog.text
    assert load_checkpoint(folder / "last.pt").config["calib_images"] is None
    assert lines(tmp_path, "start")[0]["calib_images"] == 12
    write_shards(tmp_path / "smaller", "train", (6,))
    write_shards(tmp_path / "smaller", "val", (2,))
    again = ["--config", str(folder / "config.yaml"), "--shards", str(tmp_path / "smaller"), "--batch_size", "2"]
    assert main([*again, "--save_dir", str(tmp_path / "again")]) == 0
    assert "calibrated on 6 crops" in caplog.text


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


def test_a_resumed_run_keeps_the_flags_that_it_began_with(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ("--swap_init", "calibrated", "--calib_images", "5", "--epochs", "1")
    assert run(*begun) == 0
    folder = tmp_path / "checkpoints"
    written = (folder / "config.yaml").read_text()
    for flag, value in (("--calib_images", "6"), ("--quality", "3"), ("--channels", "8,8")):
        assert run(*begun, "--resume", "auto", flag, value) == 2
        assert f"{flag} {value}: the run to resume started with" in capsys.readouterr().err
    (folder / "config.yaml").unlink()  # the checkpoint holds the flags too
    assert run(*begun, "--resume", "auto", "--quality", "3") == 2
    assert "--quality 3: the run to resume started with 8" in capsys.readouterr().err
    (folder / "config.yaml").write_text(written)
    assert run("--swap_init", "calibrated", "--epochs", "1", "--resume", "auto") == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["calib_images"] == 5
    assert load_checkpoint(folder / "last.pt").config["calib_images"] == 5


def test_a_run_that_is_refused_leaves_no_folder_and_does_not_write_beside_shards(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.pt").write_text("no codec")
    flags = ["--pretrained", str(tmp_path / "notes.pt"), "--batch_size", "4", "--swap_init", "naive", "--device", "cpu"]
    assert main(["--shards", str(crops), "--save_dir", str(tmp_path / "checkpoints"), *flags]) == 2
    assert not (tmp_path / "checkpoints").exists()
    for flag in ("--save_dir", "--recon_dir"):
        assert main([*tiny(crops, tmp_path), flag, str(crops)]) == 2
        assert f"{flag} {crops}: holds the shards" in capsys.readouterr().err


def test_a_cache_for_a_local_set_is_refused(crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--cache_gb", "1"], ["--cache_dir", str(tmp_path / "cache")]):
        assert main([*tiny(crops, tmp_path), *flags]) == 2
        assert f"{' '.join(flags)}: goes with shards at URLs; --shards {crops} is read where" in capsys.readouterr().err


def test_a_batch_that_the_ranks_do_not_divide_is_refused(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ranks(monkeypatch, size=3)
    config = parse(TrainConfig, tiny(crops, tmp_path, "--batch_size", "4"), prog="train")
    with pytest.raises(InputError, match="--batch_size 4: not divisible by the 3 processes"):
        make_plan(config)


def test_a_form_of_the_decoder_that_is_not_used_does_not_stop_a_resumed_run() -> None:
    """Without --qat no run uses --qat_upsample, whatever default an older run recorded."""
    plain, quantized = (TrainConfig(shards="shards", qat=qat) for qat in (False, True))
    check_resumed(plain, {**plain.plain_values(), "qat_upsample": "deconv5"})
    with pytest.raises(InputError, match="--qat_upsample subpixel: the run to resume has deconv5"):
        check_resumed(quantized, {**quantized.plain_values(), "qat_upsample": "deconv5"})


@pytest.mark.parametrize(
    ("batch_size", "machines", "restarts", "said"),
    [
        (12, 3, 3, ""),  # 2 and 4 processes divide it too
        (8, 4, 3, "goes on only with 1 or 2 of the 4 (2 processes each)"),
        (6, 3, 3, "goes on only with 1 of the 3 (2 processes each)"),
        (8, 4, 0, ""),
    ],
)
def test_which_machines_can_go_on_is_said_at_the_start(
    crops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    batch_size: int,
    machines: int,
    restarts: int,
    said: str,
) -> None:
    set_ranks(monkeypatch, size=machines * 2)
    for name, value in (
        ("LOCAL_WORLD_SIZE", 2),
        ("GROUP_WORLD_SIZE", machines),
        ("TORCHELASTIC_MAX_RESTARTS", restarts),
    ):
        monkeypatch.setenv(name, str(value))
    config = parse(TrainConfig, tiny(crops, tmp_path, "--batch_size", str(batch_size)), prog="train")
    make_plan(config)
    lost = [record.getMessage() for record in caplog.records if "machines are lost" in record.getMessage()]
    assert (len(lost) == 1 and said in lost[0]) if said else not lost


def test_an_order_that_does_not_fit_into_the_memory_is_refused(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 samples, 15 bytes each, in two processes."""
    set_ranks(monkeypatch, size=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for available, window, refused in ((360, 0, False), (359, 0, True), (359, 1, False)):
        monkeypatch.setattr("train.plan.available_memory", functools.partial(int, available))
        config = parse(TrainConfig, tiny(crops, tmp_path, "--shuffle_window", str(window)), prog="train")
        said = pytest.raises(InputError, match="--shuffle_window 0: to shuffle 12 samples")
        with said if refused else nullcontext():
            make_plan(config)
