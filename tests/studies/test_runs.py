"""Runs of a study that are finished, skipped, stopped or refused. Fakes replace the processes."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from relic.errors import InputError
from studies.runs import Run, Study, check_places
from tests.conftest import refusal, write_shards

Calls = list[list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Fakes of the stages. They record each call; training writes last.pt, an evaluation writes metrics.json."""
    made: Calls = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        made.append(command[1:])
        given = dict(zip(command[2::2], command[3::2], strict=False))
        if command[1] == "train/main.py":
            folder = Path(given["--save_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "last.pt").touch()
            (folder / "config.yaml").write_text("epochs: 2\n")
            if not (folder / "metrics.jsonl").exists():
                (folder / "metrics.jsonl").write_text('{"event": "validate", "epoch": 2}\n')
        else:
            Path(given["--out"]).mkdir(parents=True)
            number = float(len(made))
            codec = {"label": "last", "psnr_db": 20 + number, "ms_ssim": 0.9, "bpp_estimated": 0.3, "bpp_real": 0.301,
                     "num_images": 4, "relu_clipped": 0.5, "encode_ms": 5.0}  # fmt: skip
            (Path(given["--out"]) / "metrics.json").write_text(json.dumps({"summary": [codec]}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("studies.runs.subprocess.run", run)
    return made


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "out", {"WORK": tmp_path / "work", "SHARDS": tmp_path / "shards"})


ONE = Run("one", {"val": "--checkpoint WORK/one/last.pt"}, "--shards SHARDS --lr 1", {"part": "all"})


def test_a_run_trains_evaluates_and_keeps_its_figures(study: Study, calls: Calls, tmp_path: Path) -> None:
    result = study.finish(ONE)
    folder = tmp_path / "work" / "one"
    assert calls == [
        ["train/main.py", "--shards", str(tmp_path / "shards"), "--lr", "1", "--save_dir", str(folder)],
        ["evaluate/run.py", "--checkpoint", str(folder / "last.pt"), "--out", str(folder / "val")],
    ]
    text = (tmp_path / "out" / "one.json").read_text()
    assert json.loads(text) == result and str(tmp_path) not in text
    assert result["train"] == "python train/main.py --shards SHARDS --lr 1 --save_dir WORK/one"
    assert result["settings"] == {"part": "all"} and re.match(r"\d+\.\d+", result["versions"]["torch"])
    (figures,) = result["evaluations"]["val"]["figures"]
    assert figures == {"label": "last", "psnr_db": 22, "ms_ssim": 0.9, "bpp_estimated": 0.3, "bpp_real": 0.301,
                       "num_images": 4, "relu_clipped": 0.5}  # fmt: skip


def test_a_finished_run_is_skipped_unless_its_commands_are_others(study: Study, calls: Calls) -> None:
    first = study.finish(ONE)
    assert len(calls) == 2
    assert study.finish(ONE) == first and len(calls) == 2
    changed = ONE._replace(evaluate={"val": "--checkpoint WORK/one/last.pt --recon_count 0", "kodak": "--images X"})
    assert study.result(changed) is None


def test_a_process_that_fails_leaves_no_result_and_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("studies.runs.subprocess.run", fail)
    with pytest.raises(InputError, match=r"one: `python train/main.py --shards SHARDS .*` failed"):
        study.finish(ONE)
    assert study.result(ONE) is None and not study.out.exists()


def test_a_training_that_was_stopped_is_not_a_result(study: Study, calls: Calls, tmp_path: Path) -> None:
    """A training that is stopped by a signal ends with exit code 0."""
    run = ONE._replace(settings={"images": 4000}, validations=True)
    records = tmp_path / "work" / "one" / "metrics.jsonl"
    records.parent.mkdir(parents=True)
    validation = {"event": "validate", "psnr_db": 30.0, "ms_ssim": 0.9, "bpp": 0.3, "loss": 0.002}
    records.write_text(json.dumps(validation | {"images_seen": 2000, "epoch": 1}) + "\n")
    with pytest.raises(InputError, match="one: its training was stopped; start the study again"):
        study.finish(run)
    assert study.result(run) is None
    with pytest.raises(InputError, match="one: its training was stopped"):
        study.train(run)  # the start of another run
    records.write_text(json.dumps(validation | {"images_seen": 4000, "epoch": 2}) + "\n")
    assert [point["images_seen"] for point in study.finish(run)["validations"]] == [4000]


def test_images_are_there_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path / "shards", split, (1,), side=16)
    images = tmp_path / "images"
    folders = {"work": tmp_path / "work", "out": tmp_path / "out"}

    def said() -> str:
        return refusal(lambda: check_places(tmp_path / "shards", images, **folders), capsys)

    assert f"--images {images}: no such folder" in said()
    images.mkdir()
    assert f"--images {images}: no image in it" in said()
    (images / "one.png").touch()
    assert said() == ""
