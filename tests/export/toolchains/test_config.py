"""Flags and folders that cannot be compiled are refused, naming the flag, before anything is run."""

import json
import shutil
from pathlib import Path

import pytest

from export.toolchains.config import CompileConfig, InstallConfig
from export.toolchains.environment import environment_folder
from export.toolchains.plan import make_plan, results_folder
from export.toolchains.registry import FOLDER, TOOLCHAINS
from relic.cli import parse
from relic.errors import InputError
from relic.onnx.layout import MANIFEST
from tests.conftest import refusal
from tests.export.conftest import MakeExport

WRONG = [
    ("--toolchain tensorrt", "--toolchain tensorrt"),
    ("--toolchain ethos-u --device ethos-u99", "--device ethos-u99: --toolchain ethos-u takes ethos-u55-256"),
    ("--toolchain qnn --device rk3588", "--toolchain qnn takes htp"),
    ("--toolchain qnn --crops 0", "--crops 0"),
    ("--toolchain qnn --export no/where", "--export no/where: holds no export.json"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_mistake_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--export", "somewhere", *words.split()]
    error = refusal(lambda: make_plan(parse(CompileConfig, argv, prog="compile")), capsys)
    assert said in error and "\n" not in error


def test_a_licence_that_is_not_open_has_to_be_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(lambda: parse(InstallConfig, ["--toolchain", "qnn"], prog="install"), capsys)
    assert "Qualcomm's licence" in said and "--accept_licence" in said
    assert parse(InstallConfig, ["--toolchain", "openvino"], prog="install").toolchain == "openvino"


def test_results_lie_beside_the_export() -> None:
    assert results_folder(CompileConfig(Path("a/onnx"), "qnn")) == Path("a/onnx-htp")
    assert results_folder(CompileConfig(Path("a/onnx"), "ethos-u")) == Path("a/onnx-ethos-u55-256")
    assert results_folder(CompileConfig(Path("."), "qnn")) == Path.cwd().with_name(f"{Path.cwd().name}-htp")
    assert results_folder(CompileConfig(Path("a/onnx"), "ethos-u", out=Path("b"))) == Path("b")


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_every_toolchain_has_pins_and_a_script(name: str) -> None:
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("#") and pins == sorted(pins, key=lambda pin: pin.split("==")[0].lower())
    assert all(line.count("==") == 1 for line in pins)
    assert (FOLDER / TOOLCHAINS[name].script).is_file()  # type: ignore[index]  # `name` is one of its keys


@pytest.mark.torch
def test_what_a_compiler_cannot_take_is_refused_by_the_plan(make_export: MakeExport, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without --dynamic"):
        make_plan(CompileConfig(make_export("none", dynamic=True), "openvino"))
    with pytest.raises(InputError, match="runs only 8 bits; export with --int8"):
        make_plan(CompileConfig(make_export(), "ethos-u"))
    with pytest.raises(InputError, match="--shards: needed"):
        make_plan(CompileConfig(make_export(), "openvino"))
    with pytest.raises(InputError, match="--shards no/shards"):
        make_plan(CompileConfig(make_export(), "openvino", shards=Path("no/shards")))
    damaged = shutil.copytree(make_export(), tmp_path / "damaged")
    (damaged / MANIFEST).write_text(json.dumps({"format": "other", "version": 1}))
    with pytest.raises(InputError, match="format other"):
        make_plan(CompileConfig(damaged, "openvino"))


@pytest.mark.torch
def test_a_toolchain_that_is_not_installed_is_refused_with_the_way_out(make_export: MakeExport, crops: Path) -> None:
    config = CompileConfig(make_export(), "qnn", shards=crops)
    with pytest.raises(InputError, match=r"install_toolchain.py --toolchain qnn --accept_licence installs it \(0.5 GB"):
        make_plan(config)
    folder = environment_folder("qnn")
    folder.mkdir(parents=True)
    (folder / ".installed").touch()
    assert make_plan(config).python == folder / "bin" / "python"
