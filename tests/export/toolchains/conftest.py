"""Toolchains that are really installed, and the embedded codec on photographs, for the slow tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.toolchains.environment import find_python, install
from relic.errors import InputError
from relic.options import ToolchainName

_CACHE = os.environ.get("XDG_CACHE_HOME")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[ToolchainName], None]:
    """A function that installs a toolchain in the user's cache, or skips the test."""
    if _CACHE is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", _CACHE)

    def ensure(name: ToolchainName) -> None:
        try:
            if name == "rknn":
                find_python(name)
            else:
                install(name)
        except InputError as error:
            pytest.skip(str(error))

    return ensure


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of crops of photographs, and a checkpoint of the embedded codec with both sides swapped and calibrated."""
    from prep.make_shards import main as pack
    from samples import build
    from train.main import main as train

    folder = tmp_path_factory.mktemp("photographs")
    assert build.main(["--out", str(folder / "coco"), "--train", "32"]) == 0
    assert pack(["--coco_dir", str(folder / "coco"), "--out_dir", str(folder / "shards")]) == 0
    flags = ["--shards", str(folder / "shards"), "--pretrained", "embedded", "--replace_parts", "all", "--epochs", "0"]
    assert train([*flags, "--save_dir", str(folder / "swapped"), "--recon_every", "0"]) == 0
    return folder


def export_int8(checkpoint: Path, shards: Path, out: Path, upsample: str, side: int) -> Path:
    """An INT8 export of a checkpoint."""
    from export.onnx_parts import main as onnx_parts

    argv = ["--ckpt", str(checkpoint), "--part", "all", "--out", str(out), "--upsample", upsample]
    assert onnx_parts([*argv, "--input_size", str(side), "--int8", "--calib_shards", str(shards)]) == 0
    return out
