"""The study's plan, runs that are skipped, resumed and refused, and the table; processes are stood in for."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluate.config import EvaluateConfig
from relic.cli import parse
from relic.errors import InputError
from studies.fine_tuning import main, runs
from studies.fine_tuning_table import render
from studies.runs import Run, Study
from train.config import TrainConfig

Calls = list[list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the stages: each call is noted; training leaves last.pt, an evaluation its metrics.json."""
    made: Calls = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        made.append(command[1:])
        given = dict(zip(command[2::2], command[3::2], strict=False))
        if command[1] == "train/main.py":
            folder = Path(given["--save_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "last.pt").touch()
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


def test_the_plan_has_every_part_scope_and_loss_in_commands_the_stages_take(crops: Path, tmp_path: Path) -> None:
    plan = runs(1, 2000)
    settings = {
        (run.settings["part"], run.settings["scope"], run.settings["loss"])
        for run in plan[1:]
        if "loss" in run.settings
    }
    scopes = {"rd": ("replaced", "replaced+hyper", "all"), "recon": ("replaced", "all")}
    parts = ("encoder", "decoder", "all")
    assert settings == {(part, scope, loss) for part in parts for loss, found in scopes.items() for scope in found}
    assert {run.settings["images"] for run in plan[1:]} == {0, 2000}
    for run in plan:
        folder = tmp_path / run.name
        folder.mkdir()
        if run.train:
            flags = [*run.train.replace("SHARDS", str(crops)).split(), "--save_dir", str(folder), "--batch_size", "4"]
            config = parse(TrainConfig, flags, prog="train")
            for name in ("replace_parts", "train_scope", "loss_type"):
                key = {"replace_parts": "part", "train_scope": "scope", "loss_type": "loss"}[name]
                assert getattr(config, name) == run.settings.get(key, getattr(TrainConfig, name))
        (folder / "last.pt").touch()
        flags = run.evaluate["val"].replace("SHARDS", str(crops)).replace("WORK", str(tmp_path)).split()
        parse(EvaluateConfig, [*flags, "--out", str(folder / "val")], prog="evaluate")


def test_a_study_goes_on_where_it_failed_and_ends_with_its_table(
    crops: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--shards", str(crops), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "fine_tuning")]
    stand_in: Callable[..., Any] = subprocess.run

    def fail_late(command: list[str], **rest: Any) -> Any:
        if len(calls) == 5:
            return subprocess.CompletedProcess(command, 1)
        return stand_in(command, **rest)

    with monkeypatch.context() as patch:
        patch.setattr("studies.runs.subprocess.run", fail_late)
        assert main(argv) == 1
    table = (tmp_path / "fine_tuning.md").read_text()
    assert "21.00 dB" in table and "| all | replaced | rd |" in table
    done = len(list((tmp_path / "fine_tuning").glob("*.json")))
    assert done == 3
    assert main(argv) == 0
    plan = runs(1, 12)
    assert len(list((tmp_path / "fine_tuning").glob("*.json"))) == len(plan)
    assert len(calls) == 2 * len(plan) - 1  # none twice; the original has no training
    before = len(calls)
    assert main(argv) == 0 and len(calls) == before


def test_the_table_shows_what_the_results_say() -> None:
    def result(name: str, psnr_db: float, bpp: float, **settings: Any) -> dict[str, Any]:
        figures = {"psnr_db": psnr_db, "ms_ssim": 0.91234, "bpp_real": bpp, "num_images": 200}
        evaluation = {"command": f"python evaluate/run.py --checkpoint {name}", "figures": [figures]}
        train = f"python train/main.py --name {name}" if settings else None
        return {"name": name, "settings": settings, "train": train, "evaluations": {"val": evaluation}}

    rd = {"part": "all", "scope": "replaced", "loss": "rd", "images": 2000}
    results = {
        "original": result("original", 30.0, 0.3),
        "all-untrained": result("all-untrained", 9.0, 0.2, part="all", images=0),
        "all-replaced-rd": result("all-replaced-rd", 25.0, 0.31, **rd),
        "all-replaced-recon": result("all-replaced-recon", 27.0, 0.5, **rd | {"loss": "recon"}),
    }
    table = render(results)
    assert "| all | replaced | rd | 9.00 | 25.00 | 0.9123 | 0.9123 | 0.200 | 0.310 |" in table
    assert "| all | replaced+hyper | recon | 9.00 | 27.00 |" in table  # the run of `replaced`
    assert "| encoder | all | rd |  |  |  |  |  |  |" in table
    assert "- all: `replaced`, `rd`, -5.00 dB at +3.3% of the rate" in table  # 0.5 bpp is no match
    assert "2,000 crops" in table and "python train/main.py --name all-replaced-rd" in table
    assert "| encoder | all | rd |  |" in render({})


def test_a_training_that_was_stopped_is_not_a_result(study: Study, calls: Calls, tmp_path: Path) -> None:
    """A stop asked for by a signal ends a training cleanly, with exit code 0."""
    run = ONE._replace(settings={"images": 4000}, validations=True)
    records = tmp_path / "work" / "one" / "metrics.jsonl"
    records.parent.mkdir(parents=True)
    validation = {"event": "validate", "psnr_db": 30.0, "ms_ssim": 0.9, "bpp": 0.3, "loss": 0.002}
    records.write_text(json.dumps(validation | {"images_seen": 2000}) + "\n")
    with pytest.raises(InputError, match="one: its training was stopped; start the study again"):
        study.finish(run)
    assert study.result(run) is None
    records.write_text(json.dumps(validation | {"images_seen": 4000}) + "\n")
    assert [point["images_seen"] for point in study.finish(run)["validations"]] == [4000]
