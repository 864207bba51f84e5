"""How the swapped layers of a run start: calibrated or naive, recorded, and refused if it makes no sense."""

from pathlib import Path

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from relic.codec.model import Architecture
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order
from relic.shards.shard_set import open_shard_set
from relic.swap.calibrated import swap_calibrated
from tests.train.runs import Run, assert_equal, weights
from train.main import main

CALIBRATED = ("--swap_init", "calibrated", "--calib_images", "8")


def from_file(shards: Path, path: Path, folder: Path, *flags: str) -> list[str]:
    kept = ["--loss_type", "rd", "--batch_size", "4", "--recon_every", "0", "--device", "cpu", "--epochs", "0"]
    return [
        "--shards",
        str(shards),
        "--pretrained",
        str(path),
        "--save_dir",
        str(folder / "checkpoints"),
        *kept,
        *flags,
    ]


def swap_init(folder: Path) -> str:
    return load_checkpoint(folder / "checkpoints" / "last.pt").swap_init


def test_the_start_is_remembered(run: Run, crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gdn = ("--replace_parts", "none", "--train_scope", "all", "--epochs", "0")
    assert run(*gdn, folder=tmp_path / "gdn") == 0
    assert run("--epochs", "0", folder=tmp_path / "new") == 0
    source = tmp_path / "gdn" / "checkpoints" / "last.pt"
    few = ("--calib_images", "8", "--replace_parts")
    assert main(from_file(crops, source, tmp_path / "encoder", *few, "encoder")) == 0
    once = tmp_path / "encoder" / "checkpoints" / "last.pt"
    assert "--swap_init" not in caplog.text
    assert main(from_file(crops, once, tmp_path / "again", *few, "encoder", "--swap_init", "naive")) == 0
    assert f"--swap_init naive: the parts of --pretrained {once} have ReLU already" in caplog.text
    caplog.clear()
    assert main(from_file(crops, once, tmp_path / "naive", *few, "all", "--swap_init", "naive")) == 0
    assert "--swap_init" not in caplog.text
    # By default, random weights are kept and trained ones calibrated. Layers that are already swapped keep their name.
    wanted = {"gdn": "none", "new": "naive", "encoder": "calibrated", "again": "calibrated", "naive": "naive"}
    assert {name: swap_init(tmp_path / name) for name in wanted} == wanted
    assert load_checkpoint(tmp_path / "naive" / "checkpoints" / "last.pt").architecture == Architecture((4, 6), "all")


@pytest.mark.parametrize("again", [False, True])
def test_a_float_run_says_that_it_drops_the_steps_of_qat(
    again: bool, run: Run, crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--qat", "true", "--epochs", "1", folder=tmp_path / "qat") == 0
    source = tmp_path / "qat" / "checkpoints" / "last.pt"
    assert main(from_file(crops, source, tmp_path / "next", "--replace_parts", "all", "--qat", f"{again}".lower())) == 0
    said = f"--pretrained {source} was trained with --qat; this run trains in float" in caplog.text
    assert said == (not again)


def test_every_run_keeps_freed_memory(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not calibrated, or goes on, needs it too."""
    calls: list[str] = []
    monkeypatch.setattr("train.start.keep_freed_memory", lambda: calls.append("kept"))
    assert run("--epochs", "0") == 0 and calls == ["kept"]
    assert run("--epochs", "0", "--resume", "auto") == 0 and len(calls) == 2


def test_runs_repeat_and_other_seeds_see_other_crops(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    seen: list[torch.Tensor] = []
    calibrate = swap_calibrated

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(args[2])  # type: ignore[arg-type]
        return calibrate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("train.start.swap_calibrated", watched)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert run(*CALIBRATED, "--epochs", "0", "--seed", seed, folder=tmp_path / name) == 0
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_its_crops_are_the_first_of_the_first_epoch(run: Run, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watch(model: object, parts: object, images: torch.Tensor, **_: object) -> list[object]:
        seen.append(images)
        return []

    monkeypatch.setattr("train.start.swap_calibrated", watch)
    assert run("--swap_init", "calibrated", "--calib_images", "5", "--epochs", "0", "--seed", "2") == 0
    shards = open_shard_set(crops, "train")
    with ShardLoader(shards, batch_size=12) as loader:
        (batch,) = loader.batches([epoch_order(shards.samples, 2, 0)[:]])
        assert torch.equal(seen[0], batch.images[:5])


def test_a_resume_with_another_start_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CALIBRATED, "--epochs", "1") == 0
    assert run("--swap_init", "naive", "--epochs", "1", "--resume", "auto") == 2
    assert "--swap_init naive: the run to resume started with calibrated; leave the flag out" in capsys.readouterr().err


def test_the_same_flags_continue_a_run_that_swapped_nothing(run: Run, crops: Path, tmp_path: Path) -> None:
    assert run(*CALIBRATED, "--epochs", "0", folder=tmp_path / "relu") == 0
    source = tmp_path / "relu" / "checkpoints" / "last.pt"
    again = from_file(crops, source, tmp_path / "run", "--swap_init", "naive", "--epochs", "1", "--resume", "auto")
    assert main(again) == main(again) == 0
    assert swap_init(tmp_path / "run") == "calibrated"


@pytest.mark.parametrize(
    "flags", [("--swap_init", "calibrated"), ("--swap_init", "naive", "--precondition"), ("--swap_init", "naive")]
)
@pytest.mark.parametrize("factor", [1e30, float("nan")])
def test_a_start_that_diverged_is_one_line(
    run: Run, crops: Path, tmp_path: Path, flags: tuple[str, ...], factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--replace_parts", "none", "--train_scope", "all", "--epochs", "0", folder=tmp_path / "gdn") == 0
    content = torch.load(tmp_path / "gdn" / "checkpoints" / "last.pt", weights_only=True)
    content["model"]["g_a.2.weight"] *= factor
    torch.save(content, tmp_path / "bad.pt")
    capsys.readouterr()
    few = ("--calib_images", "8", "--replace_parts", "all", *flags)
    assert main(from_file(crops, tmp_path / "bad.pt", tmp_path / "run", *few)) == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if "error: " in line]
    assert (
        "Warning" not in said
        and len(errors) == 1
        and (str(tmp_path / "bad.pt") in errors[0] or "not finite" in errors[0])
    ), errors
    assert not list((tmp_path / "run").rglob("*.pt"))
