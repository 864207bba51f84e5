"""Curves of a run: JPEG's and WebP's against Pillow and numpy, and those of several checkpoints."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim

from evaluate.plan import ImageFolder
from evaluate.references import reference_curves
from evaluate.sources import FolderSource
from relic.codec.checkpoint import Checkpoint, save_checkpoint
from relic.codec.pretrained import EMBEDDED_FILE, read_codec
from relic.distributed import World
from relic.pictures.listing import list_images


def test_reference_curves_are_pillow_s_files_under_our_metrics(
    tmp_path: Path, make_image: Callable[..., NDArray[Any]]
) -> None:
    for number, size in enumerate(((200, 180), (176, 240))):
        Image.fromarray(make_image(*size, number)).save(tmp_path / f"{number}.png")
    world = World(0, 1, torch.device("cpu"))
    images = ImageFolder(tmp_path, tuple(list_images(tmp_path)))
    curves = reference_curves(FolderSource(images), world, workers=2)
    assert [curve.name.split()[0] for curve in curves] == ["JPEG", "WebP"]
    point = next(point for point in curves[0].points if point.name == "quality 50")
    bpp, psnr, similarity = [], [], []
    for path in sorted(tmp_path.glob("*.png")):
        pixels = np.asarray(Image.open(path)).astype(float)
        Image.open(path).save(tmp_path / "x.jpg", quality=50, optimize=True)
        decoded = np.asarray(Image.open(tmp_path / "x.jpg")).astype(float)
        bpp.append(8 * (tmp_path / "x.jpg").stat().st_size / pixels[..., 0].size)
        psnr.append(10 * math.log10(255**2 / np.square(pixels - decoded).mean()))
        pair = (torch.from_numpy(image).float().permute(2, 0, 1)[None] for image in (pixels, decoded))
        similarity.append(ms_ssim(*pair, data_range=255).item())
    assert point.bpp == pytest.approx(np.mean(bpp))
    assert point.psnr_db == pytest.approx(np.mean(psnr), abs=1e-5)
    assert point.ms_ssim == pytest.approx(np.mean(similarity), abs=1e-5)
    for found in curves:
        assert [point.bpp for point in found.points] == sorted(point.bpp for point in found.points)


@pytest.mark.parametrize(("width", "names"), [(16384, ["JPEG"]), (65504, [])])
def test_a_format_that_cannot_hold_an_image_has_no_curve(
    tmp_path: Path, width: int, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (width, 16), (9, 99, 199)).save(tmp_path / "0.png")
    images = ImageFolder(tmp_path, tuple(list_images(tmp_path)))
    curves = reference_curves(FolderSource(images), World(0, 1, torch.device("cpu")), workers=1)
    assert [curve.name.split()[0] for curve in curves] == names
    limits = {"JPEG": 65500, "WEBP": 16383}
    assert caplog.messages == [
        f"no curve of {name}: an image has a side over {limit} pixels"
        for name, limit in limits.items()
        if name not in names
    ]


def test_four_checkpoints_a_curve_give_bd_rates(shards: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        for gain in (0.125, 0.25, 0.5, 1):
            codec = read_codec(EMBEDDED_FILE, flag="")
            model = codec.build()
            with torch.no_grad():  # the wider the latents, the finer they are rounded
                for parameter in model.g_a[6].parameters():
                    parameter.mul_(gain)
                model.g_s[0].weight.div_(gain)
            paths.append(tmp_path / f"{name}{gain}.pt")
            save_checkpoint(paths[-1], Checkpoint(codec.architecture, model.state_dict()))
    outcome = run("--checkpoint", *paths, "--shards", shards, "--curve", *"aaaabbbb", "--recon_count", 0)
    assert outcome.code == 0
    curves = json.loads((outcome.out / "metrics.json").read_text())["curves"]
    assert [(curve["name"], len(curve["points"]), curve["kind"]) for curve in curves[:2]] == [
        ("a", 4, "codec"),
        ("b", 4, "codec"),
    ]
    assert curves[1]["bd_rate_psnr"]["percent"] == pytest.approx(0, abs=1e-6)
    assert "BD-rate against a:\nb: +0.0 %" in outcome.stdout
    text = re.sub(" +", " ", (outcome.out / "summary.md").read_text())
    assert "| b | +0.0 % (overlap 100%) | +0.0 % (overlap 100%) |" in text
    assert f"| a1 | none | {outcome.summary[3]['psnr_db']:.3f} |" in text
    assert (outcome.out / "rd.png").read_bytes()[:4] == b"\x89PNG"
