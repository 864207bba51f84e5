"""The calibration study: its plan, and the tables and figures from the results that exist."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluate.config import EvaluateConfig
from relic.cli import parse
from relic.errors import InputError
from studies.calibration import main, read_calibration_plan
from studies.calibration_figures import draw
from studies.calibration_page import fill
from studies.calibration_results import TUNED
from studies.runs import Study
from tests.conftest import write_shards
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "calibration.md").read_text()
PLAN = read_calibration_plan(2, 2000)


def result(name: str) -> dict[str, Any]:
    """The result of a finished run, with figures computed from its settings."""
    run = next(planned.run for planned in PLAN if planned.run.name == name)
    settings = run.settings
    bpp = 0.3
    quality = {"gdn": 0.0, "calibrated": -0.3, "naive": -5.0}[settings["init"]]
    figures = {
        "label": "last", "psnr_db": 30 + 10 * bpp + quality, "ms_ssim": 0.95, "bpp_estimated": bpp,
        "bpp_real": bpp * 1.001, "num_images": 4, "relu_clipped": None if settings["init"] == "gdn" else 0.012,
    }  # fmt: skip
    made: dict[str, Any] = {
        "name": name,
        "settings": dict(settings),
        "train": f"python train/main.py {run.train}" if run.train else None,
        "evaluations": {title: {"command": "python evaluate/run.py", "figures": [figures]} for title in run.evaluate},
    }
    if run.validations:
        made["validations"] = [
            {"images_seen": images, "psnr_db": 29 + quality + images / 4000, "ms_ssim": 0.9, "bpp": bpp,
             "loss": 0.002 - quality / 1000 - images / 4e7}
            for images in (0, 400, 2000, 4000)
        ]  # fmt: skip
    return made


RESULTS = {planned.run.name: result(planned.run.name) for planned in PLAN}


def test_the_plan_begins_with_what_tells_most_and_names_runs_once() -> None:
    names = [planned.run.name for planned in PLAN]
    assert len(set(names)) == len(names)
    assert names[0] == "original" and {f"all-{kind}" for kind in TUNED} < set(names)
    images = sum(int(planned.run.settings["images"]) for planned in PLAN)
    assert images == 2 * 4000


@pytest.mark.commands
def test_the_plan_has_commands_that_the_stages_take(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "one.png")
    for run, _ in PLAN:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "last.pt").touch()
        words = {"SHARDS": str(crops), "IMAGES": str(tmp_path / "images"), "WORK": str(tmp_path)}
        train, *evaluations = (
            [words.get(word, word.replace("WORK/", f"{tmp_path}/")) for word in arguments.split()]
            for arguments in (run.train, *run.evaluate.values())
        )
        if run.train:
            small = ["--batch_size", "4", *(["--calib_images", "4"] if run.settings["init"] == "calibrated" else [])]
            config = parse(TrainConfig, [*train, "--save_dir", str(tmp_path / "new"), *small], prog="train")
            assert config.replace_parts == run.settings.get("part", "none")
            assert config.epochs == (2 if run.settings["images"] else 0)
        for flags in evaluations:
            parse(EvaluateConfig, [*flags, "--out", str(tmp_path / "out")], prog="evaluate")


def test_the_results_kept_are_those_of_the_plan_and_the_page_is_theirs() -> None:
    study = Study(ROOT / "docs" / "calibration", {})
    kept = {planned.run.name: found for planned in PLAN if (found := study.result(planned.run))}
    assert kept.keys() == {path.stem for path in study.out.glob("*.json")}
    assert len(kept) == len(PLAN)
    assert fill(PAGE, kept) == PAGE


@pytest.mark.commands
@pytest.mark.parametrize("keep", [0, 1, 2, 5, len(PLAN)])
def test_the_tables_are_made_of_any_results(tmp_path: Path, keep: int) -> None:
    some = dict(list(RESULTS.items())[:keep])
    figures = draw(some, tmp_path)
    page = fill(PAGE, some)
    assert page.startswith("# Calibrated and naive swaps compared")
    assert len(figures) == (0 if keep < 3 else 1)
    assert all(path.stat().st_size > 5000 for path in figures)
    rows = [line for line in page.splitlines() if line.startswith(("| all |", "| encoder |", "| decoder |"))]
    assert len(rows) == sum("part" in found["settings"] for found in some.values())
    assert fill(page, RESULTS) == fill(PAGE, RESULTS)


def test_the_tables_say_what_the_results_say() -> None:
    page = fill(PAGE, RESULTS)
    assert "| GDN |  | 33.00 | 0.9500 | 0.300 |" in page
    assert "better than naive at 4 of 4 points; at the last point by 4.70 dB" in page
    assert "never as good as the calibrated start" in page and "1.2%" in page
    worse = json.loads(json.dumps(RESULTS))
    for point in worse["all-calibrated"]["validations"][1:]:
        point["loss"] = 0.1
    for point in worse["all-naive"]["validations"][2:]:
        point["loss"] = 0.001
    page = fill(PAGE, worse)
    assert "training does not lower the loss of the start" in page
    assert "better than naive at 1 of 4 points" in page
    assert "as good as the calibrated start after 2,000 images" in page


def test_a_table_that_there_is_not_is_named() -> None:
    with pytest.raises(InputError, match="<!-- table: prices -->"):
        fill("<!-- table: prices -->\n<!-- end of table -->", RESULTS)


@pytest.fixture
def study_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(
        "studies.calibration_figures.draw", lambda results, folder: []
    )  # takes a second per run, and is tested above
    for split in ("train", "val"):
        write_shards(tmp_path / "shards", split, (16,), side=176)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").touch()
    flags = {"shards": "shards", "images": "pictures", "work": "work", "out": "docs/calibration"}
    (tmp_path / "docs" / "calibration").mkdir(parents=True)
    return [word for flag, folder in flags.items() for word in (f"--{flag}", str(tmp_path / folder))]


@pytest.mark.commands
def test_a_study_goes_on_where_it_failed_and_keeps_the_text_of_its_page(
    study_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: dict[str, Any] = {}
    page = tmp_path / "docs" / "calibration.md"
    page.write_text("By hand.\n<!-- table: starts -->\n<!-- end of table -->\n")

    def finish(self: Study, run: Any) -> None:
        if len(finished) == 3 and not failed:
            failed.append(run.name)
            raise InputError(f"{run.name}: failed")
        finished.setdefault(run.name, RESULTS[run.name])

    failed: list[str] = []
    monkeypatch.setattr("studies.runs.Study.train", lambda self, run: None)
    monkeypatch.setattr("studies.runs.Study.result", lambda self, run: finished.get(run.name))
    monkeypatch.setattr("studies.runs.Study.finish", finish)
    assert main(study_flags) == 1
    assert len(finished) == 3 and failed == [PLAN[3].run.name]
    assert "| all | calibrated |" in page.read_text() and "| encoder |" not in page.read_text()
    assert main(study_flags) == 0
    assert finished.keys() == RESULTS.keys()
    assert page.read_text().startswith("By hand.\n") and "| encoder | naive |" in page.read_text()
