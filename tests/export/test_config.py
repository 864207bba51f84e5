"""Flags and paths that cannot work are refused, naming the flag, before torch is loaded."""

from pathlib import Path

import pytest

from export.config import ExportConfig
from export.plan import make_plan
from relic.cli import parse
from relic.errors import InputError
from tests.conftest import refusal, write_shards


@pytest.fixture(scope="module")
def calibration_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """105 train crops and a val crop."""
    folder = tmp_path_factory.mktemp("calibration")
    write_shards(folder, "train", (105,), side=16)
    write_shards(folder, "val", (1,), side=16)
    return folder


WRONG: list[tuple[str, str]] = [
    ("--ckpt no/such.pt", "--ckpt no/such.pt"),
    ("--replace_parts foo", "--replace_parts foo"),
    ("--input_size 100", "96 and 112"),
    ("--width 64 --height 100", "--height 100"),
    ("--width 64", "--height"),
    ("--input_size 0", "--input_size 0"),
    ("--opset 9", "--opset 9"),
    ("--opset 21", "--opset 21"),
    ("--batch 0", "--batch 0"),
    ("--part half", "--part half"),
    ("--part encoder", "*.onnx"),
    ("--out x.onnx", "--out x.onnx"),
    ("--out /dev/null/export", "/dev/null"),
    ("--shards no/shards", "--shards no/shards"),
    ("--int8", "needs --calib_shards"),
    ("--int8 --opset 11 --calib_shards SHARDS", "--opset 11 is older"),
    ("--int8 --opset 12 --calib_shards SHARDS", "opset 13"),
    ("--int8 --batch 2 --calib_shards SHARDS", "leave out --batch"),
    ("--int8 --calib_shards no/where", "--calib_shards no/where"),
    ("--int8 --calib_shards SHARDS --calib_images 99", "--calib_images 99: choose from 100 to 500"),
    ("--int8 --calib_shards SHARDS --calib_images 106", "has 105 train crops"),
    ("--int8 --calib_shards SHARDS --calib_method best", "--calib_method best"),
    ("--calib_shards SHARDS", "--calib_shards: goes with --int8"),
    ("--int8_keep_last", "--int8_keep_last: goes with --int8"),
    ("--int8_parts encoder", "--int8_parts: goes with --int8"),
    ("--int8 --calib_shards SHARDS --int8_parts decoder --int8_keep_last", "--int8_keep_last: is about the encoder"),
    (
        "--int8 --calib_shards SHARDS --int8_parts decoder --part encoder --out a.onnx",
        "--int8_parts decoder: --part encoder",
    ),
    ("--target drpai --dynamic", "leave out --dynamic"),
    ("--target drpai --batch 2", "leave out --batch"),
    ("--target drpai --opset 17", "--opset 11 to 14"),
    ("--target hal9000", "--target hal9000"),
    ("--upsample nearest", "--upsample nearest"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_mistake_is_one_line_before_any_work(
    words: str,
    said: str,
    calibration_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = words.replace("SHARDS", str(calibration_shards)).split()
    argv = ["--ckpt", "embedded", "--part", "all", "--out", "out", *flags]
    error = refusal(lambda: make_plan(parse(ExportConfig, argv, prog="export")), capsys)
    assert said in error and "\n" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("crops", "images"), [(24, 24), (250, 200)])
def test_calibration_takes_what_there_is_up_to_200(tmp_path: Path, crops: int, images: int) -> None:
    write_shards(tmp_path / "set", "train", (crops,), side=16)
    write_shards(tmp_path / "set", "val", (1,), side=16)
    flags = ["--ckpt", "embedded", "--part", "all", "--out", str(tmp_path / "out"), "--input_size", "16"]
    flags += ["--int8", "--calib_shards", str(tmp_path / "set")]
    plan = make_plan(parse(ExportConfig, flags, prog="export"))
    assert plan.int8 is not None and plan.int8.calib_images == images
    with pytest.raises(InputError, match=f"has {crops} train crops"):
        make_plan(parse(ExportConfig, [*flags, "--calib_images", "300"], prog="export"))
