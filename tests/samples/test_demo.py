"""The whole demo, as small as possible, in a folder whose name has a space."""

import json
from pathlib import Path

import pytest

from samples.demo import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_demo_runs_every_stage_and_recovers_quality(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my demo"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(["--out", str(out), "--train", "16", "--epochs", "2"]) == 2
    assert "holds files that are not of a demo" in capfd.readouterr().err
    (out / "mine.txt").unlink()
    assert main(["--out", str(out), "--train", "16", "--epochs", "2"]) == 0
    said = capfd.readouterr().out
    gdn, naive, calibrated, tuned = json.loads((out / "eval" / "metrics.json").read_text())["summary"]
    assert naive["psnr_db"] + 12 < calibrated["psnr_db"] < gdn["psnr_db"]
    assert tuned["psnr_db"] > calibrated["psnr_db"] - 0.5
    for summary in (gdn, naive, calibrated, tuned):
        assert f"{summary['psnr_db']:9.2f}{summary['ms_ssim']:9.4f}" in said
    for name in ("comparison.png", "000.relic", "000.png", "onnx/encoder.onnx", "tuned/best_loss.pt"):
        assert (out / name).stat().st_size > 0
