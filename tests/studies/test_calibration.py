"""The calibration study: its plan, and a page and figures from whichever results there are."""

import json
from pathlib import Path
from typing import Any

import bjontegaard
import pytest

from studies.calibration import EMBEDDED_RATE, runs
from studies.calibration_figures import draw
from studies.calibration_page import TUNED, bd_rate, rate_points, render
from tests.conftest import write_shards

PLAN = runs(2, 2000)


def result(name: str) -> dict[str, Any]:
    """What a finished run leaves, with figures that follow from its settings."""
    run = next(planned.run for planned in PLAN if planned.run.name == name)
    settings = run.settings
    bpp = {"0.0046": 0.2, "0.0092": 0.13, "0.0012": 0.4, EMBEDDED_RATE: 0.3}[settings["rate"]]
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
    assert names[0] == "original" and set(names[7:11]) == {f"all-{kind}" for kind in TUNED}
    assert sum("teacher-" in name for name in names) == 3
    for run, teacher in PLAN:
        if teacher is not None:
            assert names.index(teacher.name) < names.index(run.name)
            assert f"--pretrained WORK/{teacher.name}/last.pt" in run.train
    images = sum(int(planned.run.settings["images"]) for planned in PLAN)
    assert 80_000 <= images <= 160_000


@pytest.mark.parametrize("keep", [0, 1, 3, 9, 14, len(PLAN)])
def test_the_page_is_made_of_any_results(tmp_path: Path, keep: int) -> None:
    some = dict(list(RESULTS.items())[:keep])
    figures = draw(some, tmp_path)
    page = render(some, [f"calibration/{path.name}" for path in figures])
    assert page.startswith("# What a calibrated swap is worth") and str(tmp_path) not in page
    assert page.count("png)") == len(figures) == (0 if keep < 8 else 1 if keep < 11 else 2)
    assert all(path.stat().st_size > 5000 for path in figures)


def test_the_page_says_what_the_results_say() -> None:
    page = render(RESULTS, [])
    assert "| GDN |  | 33.00 | 0.9500 | 0.300 |" in page
    assert "better than naive at 4 of 4 points; at the last by 4.70 dB" in page
    assert "never as good as the calibrated start" in page and "1.2%" in page
    worse = json.loads(json.dumps(RESULTS))
    for point in worse["all-calibrated"]["validations"][1:]:
        point["loss"] = 0.1
    for point in worse["all-naive"]["validations"][2:]:
        point["loss"] = 0.001
    page = render(worse, [])
    assert "training does not lower the loss of the start" in page
    assert "better than naive at 1 of 4 points" in page
    assert "as good as the calibrated start after 2,000 images" in page


def test_bd_rate_is_bjontegaards_of_the_four_rates() -> None:
    gdn, tuned = rate_points(RESULTS, "gdn", "val"), rate_points(RESULTS, "calibrated", "val")
    assert len(gdn) == len(tuned) == 4
    columns = [[point[place] for point in sorted(points.values())] for points in (gdn, tuned) for place in (0, 1)]
    assert bd_rate(RESULTS, "calibrated", "val") == pytest.approx(bjontegaard.bd_rate(*columns, method="akima"))
    few = {name: result for name, result in RESULTS.items() if not name.endswith("0.0012")}
    assert bd_rate(few, "calibrated", "val") is None


def test_a_teacher_that_is_gone_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fresh machine the results are there and the checkpoints are not."""
    from studies import calibration

    for split in ("train", "val"):
        write_shards(tmp_path / "shards", split, (16,), side=176)
    (tmp_path / "pictures").mkdir()
    out = tmp_path / "docs" / "calibration"
    out.mkdir(parents=True)
    trained: list[str] = []
    monkeypatch.setattr("studies.runs.Study.train", lambda self, run: trained.append(run.name))
    missing = "all-calibrated-0.0046"
    monkeypatch.setattr(
        "studies.runs.Study.result", lambda self, run: None if run.name == missing else RESULTS[run.name]
    )
    monkeypatch.setattr("studies.runs.Study.finish", lambda self, run: RESULTS[run.name])
    flags = ["--shards", str(tmp_path / "shards"), "--images", str(tmp_path / "pictures")]
    assert calibration.main([*flags, "--work", str(tmp_path / "work"), "--out", str(out)]) == 0
    assert trained == ["teacher-0.0046"]
    assert (tmp_path / "docs" / "calibration.md").read_text().startswith("# What a calibrated swap is worth")
