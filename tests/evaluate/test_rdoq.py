"""`--rdoq` of the commands: fewer bytes, streams that decode exactly, and records that say so."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.torch


def cost(summary: dict[str, Any], lmbda: float) -> float:
    """CompressAI's loss of the means of equally large images: lmbda x 255^2 x MSE + bpp."""
    return float(lmbda * 255**2 * 10 ** (-summary["psnr_db"] / 10) + summary["bpp_real"])


@pytest.mark.commands
def test_the_loss_falls_with_the_effort(shards: Path, run: Callable[..., Any]) -> None:
    lmbda, found = 0.002, []
    for effort in ("off", "fast", "full"):
        flags = [] if effort == "off" else ["--rdoq", effort, "--rdoq_lmbda", lmbda]
        outcome = run("--checkpoint", "embedded", "--shards", shards, *flags, out=effort)
        assert outcome.code == 0
        (summary,) = outcome.summary
        assert summary["rdoq"] == {"effort": effort, "lmbda": None if effort == "off" else lmbda}
        note = f"symbols moved by --rdoq {effort} --rdoq_lmbda 0.002"
        for text in (outcome.stdout, *((outcome.out / name).read_text() for name in ("summary.md", "report.html"))):
            assert (note in text) == (effort != "off")
            assert ("symbols moved" in text) == (effort != "off")
        found.append(summary)
    costs = [cost(summary, lmbda) for summary in found]
    assert costs[0] > costs[1] > costs[2]
    for name in ("bpp_real", "bpp_estimated"):  # both are of the moved symbols
        assert found[0][name] > max(found[1][name], found[2][name])


@pytest.mark.commands
def test_export_sets_move_symbols_with_their_own_decoder(folder: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    """Images smaller than a block and of odd sizes too; and codec.py writes what the evaluation measured."""
    from export.codec import main as codec_main
    from export.onnx_parts import main as export_main

    export = tmp_path / "onnx"
    assert export_main(["--ckpt", "embedded", "--part", "all", "--dynamic", "--out", str(export)]) == 0
    rdoq = ["--rdoq", "full", "--rdoq_lmbda", "0.002"]
    plain = run("--onnx", export, "--images", folder, out="plain")
    moved = run("--onnx", export, "--images", folder, *rdoq, out="moved")
    assert plain.code == moved.code == 0
    assert cost(moved.summary[0], 0.002) < cost(plain.summary[0], 0.002)
    for row in moved.rows:
        source, target = folder / row["name"], tmp_path / "out.relic"
        assert codec_main(["encode", str(source), str(target), "--export", str(export), *rdoq]) == 0
        assert target.stat().st_size == int(row["file_bytes"])
        assert codec_main(["decode", str(target), str(tmp_path / "out.png"), "--export", str(export)]) == 0
        x, x_hat = (np.asarray(Image.open(path).convert("RGB"), float) for path in (source, tmp_path / "out.png"))
        assert 10 * math.log10(255**2 / np.square(x - x_hat).mean()) == pytest.approx(float(row["psnr_db"]), abs=1e-4)


@pytest.mark.commands
def test_a_set_of_a_fixed_size(shards: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    from export.onnx_parts import main as export_main

    export = tmp_path / "onnx"
    flags = ["--ckpt", "embedded", "--part", "all", "--input_size", "176", "--out", str(export)]
    assert export_main(flags) == 0
    plain = run("--onnx", export, "--shards", shards, out="plain")
    moved = run("--onnx", export, "--shards", shards, "--rdoq", "full", "--rdoq_lmbda", "0.002", out="moved")
    assert cost(moved.summary[0], 0.002) < cost(plain.summary[0], 0.002)
