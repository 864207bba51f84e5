"""Compiling and comparing, with a compiler of known faults in the place of a vendor's."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from export.compile_parts import main
from export.toolchains import plan, running
from export.toolchains.compilation import _read_input
from export.toolchains.registry import FOLDER
from relic.bitstream.container import OVERHEAD_BYTES, pack
from relic.bitstream.tables import dequantize, quantize
from relic.errors import InputError
from relic.onnx.sessions import load_tables, open_session
from tests.conftest import write_shards
from tests.export.conftest import MakeExport, as_batch

pytestmark = pytest.mark.torch

SCRIPT = """
import numpy as np
import onnxruntime
from job import Compiled, main

def work(job, inputs):
    print("a vendor's chatter")
    session = onnxruntime.InferenceSession(str(job.model), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in inputs])
    (job.out / f"{job.part}.bin").write_text(job.device)
    FAULT
    return Compiled({"vendor": "1.0"}, [f"{job.part}.bin"], 7, 1, ["Round"], 2e6, 4.0, 2048, "An estimate"), outputs

main(work)
"""
FIRST_LATENT = """
    if job.part == "encoder":
        outputs[:, 0, 0, 0] += 1
    else:
        outputs[:, :, 0, 0] = np.where(outputs[:, :, 0, 0] < 0.5, 1, 0)
"""


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of OpenVINO, for the test to write. It runs in this Python."""
    folder = tmp_path / "toolchains"
    folder.mkdir()
    shutil.copy(FOLDER / "job.py", folder)
    monkeypatch.setattr(running, "FOLDER", folder)
    monkeypatch.setattr(plan, "find_python", lambda name: Path(sys.executable))
    return folder / "run_openvino.py"


def compile_parts(folder: Path, shards: Path, out: Path) -> int:
    return main(["--export", str(folder), "--toolchain", "openvino", "--shards", str(shards), "--out", str(out)])


def test_a_report_says_what_the_compiler_said_and_how_numbers_differ(
    vendor: Path, make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vendor.write_text(SCRIPT.replace("FAULT", FIRST_LATENT.strip()))
    pixels = list(write_shards(tmp_path / "shards", "val", (2,), side=80, seed=5).values())
    folder, out = make_export(), tmp_path / "out"
    assert compile_parts(folder, tmp_path / "shards", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["decoder.bin", "encoder.bin", "report.json", "report.md"]
    assert (out / "encoder.bin").read_text() == report["device"] == "cpu"
    encoder = report["parts"]["encoder"]
    assert (encoder["device_operators"], encoder["host_operators"], encoder["on_host"]) == (7, 1, ["Round"])

    # The same by hand: crops of 64x80 pixels, 12 channels of 4x5 latents.
    x = as_batch(*(crop[8:72] for crop in pixels))
    tables = load_tables(folder)
    y = [open_session(folder / "encoder.onnx").run(None, {"x": one[None]})[0][0] for one in x]
    sent = [quantize(one, tables) for one in y]
    compared = report["comparison"]
    assert (compared["crops"], compared["crops_of"]) == (2, "val crops of --shards")
    assert compared["equal_symbols"] == pytest.approx(1 - 1 / (12 * 4 * 5))
    assert compared["largest_symbol_difference"] == 1
    assert compared["equal_pixels"] == pytest.approx(1 - 1 / (64 * 80))
    assert compared["largest_pixel_difference"] >= 128
    num_bytes = sum(len(pack(one, 80, 64, tables)) - OVERHEAD_BYTES for one in sent)
    assert compared["onnxruntime"]["bpp_real"] == pytest.approx(8 * num_bytes / (2 * 64 * 80))
    x_hat = [
        open_session(folder / "decoder.onnx").run(None, {"y_hat": dequantize(one, tables)[None]})[0][0] for one in sent
    ]
    squares = [np.square(np.rint(a * 255.0) - np.rint(b * 255.0)).mean() for a, b in zip(x, x_hat, strict=True)]
    assert compared["onnxruntime"]["psnr_db"] == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(squares))))
    assert compared["device"]["psnr_db"] < compared["onnxruntime"]["psnr_db"]

    page, said = (out / "report.md").read_text(), capsys.readouterr().out
    assert "vendor 1.0; float32, --upsample subpixel, 80x64, N=8 M=12" in page and "An estimate." in page
    for text in (page, said):
        assert "99.58% of the symbols are equal (others by up to 1)" in text and "1 Round" in text
        assert "2.00  4.00" in text and "chatter" not in text


REFUSALS = [
    (
        'raise RuntimeError("Deconv is not\\nsupported")',
        "the compiler refuses it: Deconv is not supported; export with --upsample subpixel",
    ),
    ("import os; os._exit(3)", "run_openvino.py ended with code 3"),
    (
        "outputs[0, 0, 0, 0] = np.nan",
        "its simulator gives (4, 12, 4, 5) for the encoder, or values that are not finite",
    ),
    ("outputs = outputs.transpose(0, 2, 3, 1)", "its simulator gives (4, 4, 5, 12) for the encoder"),
]


@pytest.mark.parametrize(("fault", "said"), REFUSALS)
def test_a_part_that_is_refused_leaves_nothing(
    fault: str, said: str, vendor: Path, make_export: MakeExport, crops: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    vendor.write_text(SCRIPT.replace("FAULT", fault))
    assert compile_parts(make_export(upsample="deconv5"), crops, tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("export/compile_parts.py: error: ") and said in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_calibration_input_is_named(tmp_path: Path) -> None:
    file = tmp_path / "0.npy"
    for content in (b"", b"PK\3\4 no archive", b"no array", np.lib.format.magic(1, 0) + b"\xff\xff"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"0\.npy: .*export again"):
            _read_input(file, (32, 32))
    for wrong in (np.zeros((1, 3, 32, 16), np.float32), np.zeros((1, 3, 32, 32)), np.zeros((3, 32, 32), np.float32)):
        np.save(file, wrong)
        with pytest.raises(InputError, match=r"0\.npy: not float32 values of \(1, 3, 32, 32\); export again"):
            _read_input(file, (32, 32))
    x_13HW = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    np.save(file, x_13HW)
    assert np.array_equal(_read_input(file, (32, 32)), x_13HW)
