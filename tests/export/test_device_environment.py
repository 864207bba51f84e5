"""A virtual environment like a device's: without torch and compressai, with the files of one side only."""

import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relic.bitstream.container import pack, read_stream
from relic.bitstream.tables import Tables
from relic.codec.checkpoint import load_checkpoint
from relic.codec.coding import analyse
from relic.codec.pixels import to_float
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint, MakeExport, smooth_image

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("numpy", "PIL", "onnxruntime", "flatbuffers")
UNWANTED = ("torch", "torchvision", "compressai", "onnx", "jsonargparse", "scipy")
HEADER_BYTES, CRC_BYTES = 36, 4


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds numpy, Pillow and onnxruntime, by links to those of this one."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, system_site_packages=False, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        installed = Path(spec.origin).parent
        for path in (installed, *installed.parent.glob(f"{'pillow*' if name == 'PIL' else name}.libs")):
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *arguments], cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("module", UNWANTED)
def test_the_environment_has_no_heavy_package(module: str, python: Path, tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in run(python, tmp_path, "-c", f"import {module}").stderr


@pytest.mark.parametrize("replaced", ["all", "none"])
def test_one_side_encodes_and_the_other_decodes(
    replaced: str, python: Path, tmp_path: Path, make_export: MakeExport, make_checkpoint: MakeCheckpoint
) -> None:
    for machine, part in (("camera", "encoder.onnx"), ("viewer", "decoder.onnx")):
        (tmp_path / machine / "export").mkdir(parents=True)
        for name in (part, "tables.npz"):
            shutil.copy(make_export(replaced) / name, tmp_path / machine / "export")
    pixels = smooth_image(HEIGHT, WIDTH, seed=6)
    Image.fromarray(pixels).save(tmp_path / "camera" / "in.png")
    codec = str(ROOT / "export" / "codec.py")
    encoding = run(python, tmp_path / "camera", codec, "encode", "in.png", "it.relic", "--export", "export")
    assert encoding.returncode == 0, encoding.stderr
    shutil.copy(tmp_path / "camera" / "it.relic", tmp_path / "viewer")
    decoding = run(python, tmp_path / "viewer", codec, "decode", "it.relic", "out.png", "--export", "export")
    assert decoding.returncode == 0, decoding.stderr

    model = load_checkpoint(make_checkpoint(replaced)).build()
    stream = (tmp_path / "viewer" / "it.relic").read_bytes()
    with torch.inference_mode():
        expected = model.decompress([[stream[HEADER_BYTES:-CRC_BYTES]]], (HEIGHT // 16, WIDTH // 16))["x_hat"]
    found = np.asarray(Image.open(tmp_path / "viewer" / "out.png")) / 255
    assert found.std() > 0.05, "an image of one colour would prove nothing"
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() <= 1 / 255

    # The same symbols give the bytes that the evaluator, with CompressAI's compiled coder, writes.
    tables = Tables.load(make_export(replaced) / "tables.npz")
    symbols = analyse(model, to_float(torch.from_numpy(pixels[None])))[0]
    assert np.array_equal(read_stream(tmp_path / "viewer" / "it.relic", tables).symbols, symbols)
    assert stream == pack(symbols, WIDTH, HEIGHT, tables)


def test_what_is_imported_is_light(tmp_path: Path, make_export: MakeExport) -> None:
    """Also where torch is installed."""
    Image.fromarray(smooth_image(HEIGHT, WIDTH)).save(tmp_path / "in.png")
    for arguments in (["encode", "in.png", "it.relic"], ["decode", "it.relic", "out.png"]):
        watched = ["-X", "importtime", str(ROOT / "export" / "codec.py"), *arguments]
        done = run(Path(sys.executable), tmp_path, *watched, "--export", str(make_export("all")))
        assert done.returncode == 0, done.stderr
        imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
        assert {"numpy", "onnxruntime"} <= imported and not imported & {*UNWANTED}
