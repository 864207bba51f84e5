"""Real compilers and simulators. A toolchain that cannot be installed is skipped with the reason.

RKNN-Toolkit2 takes 5.5 GB, so it is not installed by these tests; they use it where it is.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import onnx_parts
from export.compile_parts import main
from export.toolchains.environment import clean_environment, find_python
from relic.codec.checkpoint import save_checkpoint
from relic.onnx.sessions import open_session
from relic.options import ToolchainName
from tests.conftest import write_shards
from tests.export.conftest import tiny_codec
from tests.export.toolchains.conftest import export_int8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOOLCHAINS: list[ToolchainName] = ["openvino", "qnn", "ethos-u", "rknn"]
UPSAMPLE = {"openvino": "subpixel", "qnn": "subpixel", "ethos-u": "subpixel-deconv2", "rknn": "subpixel"}
LOSS_DB = {"openvino": 0.05, "qnn": 0.05, "ethos-u": 0.0, "rknn": 0.2}
"""PSNR below onnxruntime's INT8, at most. RKNN's simulator rounds by other rules."""


def compile_parts(export: Path, name: str, *flags: str) -> dict[str, Any]:
    out = export.parent / f"{export.name}-{name}"
    assert main(["--export", str(export), "--toolchain", name, "--out", str(out), *flags]) == 0
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    for part in report["parts"].values():
        assert all((out / file).stat().st_size > 1000 for file in part["files"])
    return report


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_the_embedded_codec_compiles_wholly_and_keeps_its_quality(
    name: ToolchainName, installed: Callable[[ToolchainName], None], photographs: Path, tmp_path: Path
) -> None:
    installed(name)
    checkpoint, shards = photographs / "swapped" / "last.pt", photographs / "shards"
    folder = export_int8(checkpoint, shards, tmp_path / "export", UPSAMPLE[name], 224)
    report = compile_parts(folder, name, "--shards", str(shards))
    assert [part["host_operators"] for part in report["parts"].values()] == [0, 0]
    compared = report["comparison"]
    assert compared["onnxruntime"]["psnr_db"] > 25
    assert compared["onnxruntime"]["psnr_db"] - compared["device"]["psnr_db"] <= LOSS_DB[name]
    assert compared["largest_symbol_difference"] <= 1 and compared["equal_symbols"] > 0.9
    if name == "ethos-u":
        assert (compared["equal_symbols"], compared["equal_pixels"]) == (1, 1)


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_codec_of_full_width_compiles_wholly(
    name: ToolchainName, installed: Callable[[ToolchainName], None], tmp_path: Path
) -> None:
    installed(name)
    save_checkpoint(tmp_path / "c.pt", tiny_codec("all", (128, 192)))
    write_shards(tmp_path / "shards", "train", (16,), side=64)
    write_shards(tmp_path / "shards", "val", (2,), side=64)
    folder = export_int8(tmp_path / "c.pt", tmp_path / "shards", tmp_path / "export", UPSAMPLE[name], 64)
    report = compile_parts(folder, name)
    assert report["channels"] == [128, 192]
    assert [part["host_operators"] for part in report["parts"].values()] == [0, 0]


def test_every_form_is_exact_in_tflite_where_onnxruntime_computes_integers(
    installed: Callable[[ToolchainName], None], tmp_path: Path
) -> None:
    installed("ethos-u")
    save_checkpoint(tmp_path / "c.pt", tiny_codec("all"))
    write_shards(tmp_path / "shards", "train", (16,), side=64)
    write_shards(tmp_path / "shards", "val", (2,), side=64)
    for upsample in ("deconv5", "deconv6", "subpixel", "subpixel-deconv2"):
        folder = export_int8(tmp_path / "c.pt", tmp_path / "shards", tmp_path / upsample, upsample, 64)
        report = compile_parts(folder, "ethos-u", "--device", "ethos-u85-256")
        compared = report["comparison"]
        assert [part["host_operators"] for part in report["parts"].values()] == [0, 0]
        assert compared["equal_symbols"] == 1
        assert compared["largest_pixel_difference"] <= (0 if upsample.startswith("subpixel") else 1), upsample


REFUSED: list[tuple[ToolchainName, str, str, str]] = [
    ("rknn", "all", "deconv5", "Got invalid dimensions"),
    ("qnn", "none", "subpixel", "QNN_COMMON_ERROR_MEM_ALLOC"),
]


@pytest.mark.parametrize(("name", "replaced", "upsample", "said"), REFUSED)
def test_what_the_rules_say_is_what_the_compiler_says(
    name: ToolchainName, replaced: Any, upsample: str, said: str, installed: Callable[[ToolchainName], None],
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    installed(name)
    channels = (64, 96) if replaced == "all" else (32, 48)
    save_checkpoint(tmp_path / "c.pt", tiny_codec(replaced, channels))
    write_shards(tmp_path / "shards", "val", (2,), side=224)
    argv = ["--ckpt", str(tmp_path / "c.pt"), "--part", "all", "--out", str(tmp_path / "export")]
    assert onnx_parts.main([*argv, "--upsample", upsample, "--target", name]) == 1
    assert "--target" in capfd.readouterr().err
    assert onnx_parts.main([*argv, "--upsample", upsample]) == 0
    argv = ["--export", str(tmp_path / "export"), "--toolchain", name, "--shards", str(tmp_path / "shards")]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert "the compiler refuses it" in error and said in error
    assert not (tmp_path / "out").exists()


BY_HAND = """
import sys
import numpy as np
from rknn.api import RKNN

def run(model, pixels, format, config, **build):
    rknn = RKNN()
    assert rknn.config(target_platform="rk3588", **config) == 0
    assert rknn.load_onnx(model=model) == 0
    assert rknn.build(**build) == 0
    assert rknn.init_runtime() == 0
    return rknn.inference(inputs=[pixels], data_format=[format])[0]

export, out = sys.argv[1:]
x = np.load(f"{export}/calibration/encoder/001.npy")
pixels = np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1)
whole = {"mean_values": [[0, 0, 0]], "std_values": [[255, 255, 255]]}
np.savez(
    out,
    x=x,
    uint8=run(f"{export}/encoder.onnx", pixels, "nhwc", whole, do_quantization=False),
    floats=run(f"{export}/encoder.onnx", x, "nchw", {}, do_quantization=False),
    own=run(
        f"{export}/float/encoder.onnx", x, "nchw", {}, do_quantization=True, dataset=f"{export}/calibration/encoder.txt"
    ),
)
"""


def test_rknn_takes_uint8_pixels_and_the_list_of_the_calibration(
    installed: Callable[[ToolchainName], None], tmp_path: Path
) -> None:
    installed("rknn")
    save_checkpoint(tmp_path / "c.pt", tiny_codec("all"))
    write_shards(tmp_path / "shards", "train", (16,), side=64)
    write_shards(tmp_path / "shards", "val", (2,), side=64)
    folder = export_int8(tmp_path / "c.pt", tmp_path / "shards", tmp_path / "export", "subpixel", 64)
    (tmp_path / "elsewhere").mkdir()
    command = [str(find_python("rknn")), "-c", BY_HAND, str(folder), str(tmp_path / "found.npz")]
    subprocess.run(command, cwd=tmp_path / "elsewhere", env=clean_environment(), check=True)
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["uint8"], found["floats"])
    (exact,) = open_session(folder / "float" / "encoder.onnx").run(None, {"x": found["x"]})
    for name in ("floats", "own"):
        noise = np.square(found[name] - exact).mean() / np.square(exact).mean()
        assert -10 * np.log10(noise) > 15, name
