import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.evaluate import main


@pytest.mark.torch
def test_both_evaluators_judge_the_same_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((480, 460), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{number}.png")
    argv = ["--images", str(tmp_path / "images"), "--crops", "6", "--rounds", "2", "--workers", "2"]
    assert main([*argv, "--codec", "8,12", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_images"], figures["workers"], figures["codec"]) == (6, 2, "8,12")
    assert figures["relic/compressai"] == pytest.approx(figures["relic"] / figures["compressai"])
    # CompressAI's tool pads a crop with black to 256x256. For an untrained codec this changes little.
    assert figures["relic_psnr_db"] == pytest.approx(figures["compressai_psnr_db"], abs=1)
    assert figures["coder"]["processes"] > 0
    assert "relic/compressai" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--crops", "0"], ["--rounds", "1"]])
def test_wrong_flags_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and f"{flags[0]} {flags[1]}" in capsys.readouterr().err
