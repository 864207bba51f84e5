"""The same images and weights through CompressAI's own evaluator, run for real as its users run it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from relic.codec.pretrained import EMBEDDED_FILE, finished_model, read_codec

SIZES = {"a.png": (192, 256), "b.png": (256, 192), "c.png": (320, 192)}  # it pads to 64: so do we then, by nothing


def test_psnr_ms_ssim_and_real_rate_agree(
    tmp_path: Path, run: Callable[..., Any], make_image: Callable[..., NDArray[Any]]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(make_image(*size, number)).save(images / name)
    # It cuts eight characters, `.tar.pth`, off the name.
    weights = tmp_path / "embedded.tar.pth"
    torch.save({"state_dict": finished_model(read_codec(EMBEDDED_FILE, flag=""), "").state_dict()}, weights)

    theirs_dir = tmp_path / "theirs"
    command = [sys.executable, "-m", "compressai.utils.eval_model", "checkpoint", str(images)]
    command += ["-a", "bmshj2018-factorized", "-p", str(weights), "-d", str(theirs_dir), "--per-image"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    ours = run("--checkpoint", weights, "--images", images, "--references", "false")
    assert ours.code == 0

    for row in ours.rows:
        (found,) = theirs_dir.rglob(f"{Path(row['name']).stem}-*.json")
        results = json.loads(found.read_text())["results"]
        num_pixels = int(row["width"]) * int(row["height"])
        symbol_bytes = float(row["bpp_real"]) * num_pixels / 8
        assert float(row["psnr_db"]) == pytest.approx(results["psnr-rgb"], abs=1e-3)
        assert float(row["ms_ssim"]) == pytest.approx(results["ms-ssim-rgb"], abs=1e-5)
        assert symbol_bytes == pytest.approx(results["bpp"] * num_pixels / 8, rel=1e-3)
    summary = json.loads(done.stdout)["results"]
    assert ours.summary[0]["psnr_db"] == pytest.approx(summary["psnr-rgb"][0], abs=1e-3)
    assert ours.summary[0]["ms_ssim"] == pytest.approx(summary["ms-ssim-rgb"][0], abs=1e-5)
    assert ours.summary[0]["bpp_real"] == pytest.approx(summary["bpp"][0], rel=1e-3)
