"""--calib_method learned: what the loss changed, and that it helps."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.onnx_parts import main
from relic.onnx.layout import FLOAT
from tests.export.conftest import MakeCheckpoint
from tests.export.int8.conftest import SIDE, Crops, Export

pytestmark = pytest.mark.torch

LAMBDA = 0.001
LEARNED = ("--calib_method", "learned", "--calib_lambda", str(LAMBDA))


def cost(folder: Path) -> float:
    """Mean squared error plus LAMBDA x bits per pixel of the val crops, by the files in `folder` and real bytes."""
    told = json.loads((folder / "export.json").read_text())["int8"]["quality"]["int8"]
    return float(10 ** (-told["psnr_db"] / 10) + LAMBDA * told["bpp_real"])


@pytest.mark.commands
@pytest.mark.parametrize("upsample", ["deconv5", "subpixel-deconv2"])
def test_the_rate_distortion_cost_of_other_crops_falls(upsample: str, export: Export) -> None:
    learned, plain = (export("all", "--upsample", upsample, *flags) for flags in (LEARNED, ()))
    told = json.loads((learned / "export.json").read_text())["int8"]
    assert told["calibration"]["method"] == "learned"
    float32 = told["quality"]["float32"]
    assert cost(learned) < cost(plain)
    exact = float(10 ** (-float32["psnr_db"] / 10) + LAMBDA * float32["bpp_real"])
    assert cost(learned) < exact + 0.7 * (cost(plain) - exact) or cost(plain) <= exact


@pytest.mark.commands
def test_weights_are_rounded_up_or_down_and_not_always_to_the_nearest(export: Export) -> None:
    folder = export("all", *LEARNED)
    other_way = 0
    for part in ("encoder", "decoder"):
        model, original = (onnx.load(folder / where / f"{part}.onnx") for where in ("", FLOAT))
        values, real = (
            {one.name: numpy_helper.to_array(one) for one in each.graph.initializer} for each in (model, original)
        )
        layers = [name for name in values if name.endswith(".weight_quantized")]
        assert len(layers) == 4
        for name in layers:
            plain = name.removesuffix("_quantized")
            steps, axis = values[f"{plain}_scale"], 0 if part == "encoder" else 1
            exact = real[plain] / steps.reshape([-1 if side == axis else 1 for side in range(4)])
            levels = values[name].astype(float)
            inside = np.abs(exact) < 126.5
            assert (np.abs(levels - exact)[inside] <= 1.001).all()
            other_way += int((levels != np.rint(exact))[inside].sum())
    assert other_way > 50


def test_codecs_that_cannot_learn_are_refused(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--part", "all", "--out", str(tmp_path / "set"), "--input_size", str(SIDE), "--int8"]
    common += ["--calib_shards", str(crops.folder), "--calib_method", "learned"]
    assert main(["--ckpt", str(make_checkpoint("encoder")), *common, "--calib_lambda", "0.01"]) == 1
    assert "--calib_method learned: needs ReLU in both parts" in capsys.readouterr().err
    assert main(["--ckpt", str(make_checkpoint("all")), *common]) == 1
    assert "give --calib_lambda" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
