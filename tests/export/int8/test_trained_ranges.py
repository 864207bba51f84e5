"""A checkpoint of --qat is exported with the steps that it was trained with."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from export.onnx_parts import main
from relic.codec.checkpoint import save_checkpoint
from relic.options import Parts, Upsample
from tests.export.conftest import tiny_codec
from tests.export.int8.conftest import SIDE, Crops
from tests.export.int8.test_fake_quantization import scales

STEPS = {"g_a.1": 0.011, "g_a.3": 0.023, "g_a.5": 0.037, "g_s.1": 0.041, "g_s.3": 0.053, "g_s.5": 0.067}


def export_of(folder: Path, crops: Crops, replaced: Parts, *flags: str, trained_for: Upsample = "deconv5") -> Path:
    steps = {name: step for name, step in STEPS.items() if replaced == "all" or name.startswith("g_a")}
    checkpoint = dataclasses.replace(
        tiny_codec(replaced), quantization={"upsample": trained_for, "activation_steps": steps}
    )
    save_checkpoint(folder / "trained.pt", checkpoint)
    given = ["--ckpt", str(folder / "trained.pt"), "--part", "all", "--out", str(folder / "set"), "--int8", *flags]
    assert main([*given, "--input_size", str(SIDE), "--calib_shards", str(crops.folder), "--calib_images", "100"]) == 0
    return folder / "set"


def relu_scales(folder: Path) -> list[float]:
    return [
        scale
        for part in ("encoder", "decoder")
        for name, scale in scales(folder / f"{part}.onnx").items()
        if "Relu" in name and name.endswith("_scale")
    ]


@pytest.mark.parametrize("upsample", ["deconv5", "subpixel-deconv2"])
def test_the_file_has_the_trained_steps(
    upsample: str, tmp_path: Path, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_of(tmp_path, crops, "all", "--upsample", upsample)
    assert relu_scales(folder) == [np.float32(step) for step in STEPS.values()]
    told = json.loads((folder / "export.json").read_text())
    assert told["int8"]["calibration"]["method"] == "qat"
    assert told["checkpoint"]["quantization"]["activation_steps"] == STEPS
    assert "trained with --qat" in capsys.readouterr().out


def test_what_is_not_trained_is_calibrated(tmp_path: Path, crops: Crops) -> None:
    folder = export_of(tmp_path, crops, "encoder")
    assert relu_scales(folder) == [np.float32(step) for step in list(STEPS.values())[:3]]
    assert len(scales(folder / "decoder.onnx")) > 8


@pytest.mark.parametrize(("part", "method"), [("encoder", "qat"), ("decoder", "percentile")])
def test_export_json_names_the_method_of_the_quantized_part(
    part: str, method: str, tmp_path: Path, crops: Crops
) -> None:
    folder = export_of(tmp_path, crops, "encoder", "--int8_parts", part)
    assert json.loads((folder / "export.json").read_text())["int8"]["calibration"]["method"] == method


def test_a_method_that_is_given_comes_before_the_trained_steps(tmp_path: Path, crops: Crops) -> None:
    folder = export_of(tmp_path, crops, "all", "--calib_method", "minmax")
    assert not set(relu_scales(folder)) & {np.float32(step) for step in STEPS.values()}
    assert json.loads((folder / "export.json").read_text())["int8"]["calibration"]["method"] == "minmax"


def test_the_form_is_the_one_that_was_trained_for(
    tmp_path: Path, crops: Crops, caplog: pytest.LogCaptureFixture
) -> None:
    folder = export_of(tmp_path, crops, "all", trained_for="deconv6")
    assert json.loads((folder / "export.json").read_text())["upsample"] == "deconv6"
    folder = export_of(tmp_path, crops, "all", "--target", "openvino", trained_for="deconv6")
    assert json.loads((folder / "export.json").read_text())["upsample"] == "subpixel"
    assert "trained with --qat_upsample deconv6; --upsample subpixel rounds its weights otherwise" in caplog.text


def test_an_export_in_float_says_that_the_weights_are_for_int8(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, quantization in (("plain", None), ("trained", {"upsample": "subpixel", "activation_steps": STEPS})):
        save_checkpoint(tmp_path / f"{name}.pt", dataclasses.replace(tiny_codec("all"), quantization=quantization))
        given = ["--ckpt", str(tmp_path / f"{name}.pt"), "--part", "encoder", "--out", str(tmp_path / "one.onnx")]
        assert main([*given, "--input_size", str(SIDE)]) == 0
        assert ("was trained with --qat" in caplog.text) == (name == "trained")
