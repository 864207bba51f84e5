"""Exports for a device: parts that its NPU can run are written, others are refused with the reason."""

import json
from pathlib import Path
from typing import get_args

import onnx
import pytest

from export.devices.rules import TARGETS
from export.onnx_parts import main
from relic.options import Upsample
from tests.export.conftest import MakeCheckpoint

pytestmark = pytest.mark.torch


def export(checkpoint: Path, out: Path, *flags: str) -> int:
    return main(["--ckpt", str(checkpoint), "--part", "all", "--out", str(out), "--input_size", "32", *flags])


@pytest.mark.parametrize("target", TARGETS)
def test_a_swapped_codec_gets_the_upsampling_of_the_target_and_passes(
    target: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    upsample = TARGETS[target].upsample
    assert export(make_checkpoint("all"), tmp_path / "out", "--target", target) == 0
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    nodes = said["target"]["nodes"]
    assert said["target"]["target"] == target and said["upsample"] == upsample
    for part in ("encoder", "decoder", "full"):
        found = [node["node"] for node in nodes if node["part"] == part]
        assert found == [node.name for node in onnx.load(tmp_path / "out" / f"{part}.onnx").graph.node]
    assert {node["status"] for node in nodes if node["part"] == "encoder"} == {"supported"}
    assert not {"host", "fails"} & {node["status"] for node in nodes if node["part"] == "decoder"}
    (rounding,) = (node for node in nodes if node["operator"] == "Round")
    assert rounding["part"] == "full" and rounding["status"] in ("host", "unknown", "supported")
    assert {node["source"] for node in nodes} - {""} == said["target"]["sources"].keys()
    table = capsys.readouterr().out
    assert f"{target}  " in table and ("(read)" if target in ("drpai", "tidl") else "(seen)") in table


@pytest.mark.parametrize(
    ("target", "upsample", "says"),
    [
        ("qnn", "deconv5", "use --upsample subpixel"),
        ("imx500", "deconv6", "use --upsample subpixel"),
        ("tidl", "deconv5", "use --upsample subpixel"),
        ("tidl", "deconv6", "use --upsample subpixel"),
    ],
)
def test_a_part_that_would_fail_or_leave_the_npu_is_not_written(
    target: str, upsample: Upsample, says: str, tmp_path: Path, make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert upsample in get_args(Upsample)
    assert export(make_checkpoint("all"), tmp_path / "out", "--target", target, "--upsample", upsample) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the decoder has 4 nodes that the NPU does not" in error and says in error
    assert not list(tmp_path.iterdir())


REFUSING = [target for target in TARGETS if TARGETS[target].gdn.status == "fails"]


@pytest.mark.parametrize("target", REFUSING)
def test_gdn_is_refused_where_compilers_refuse_it(
    target: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    for replaced, says in (("none", "the encoder holds GDN"), ("encoder", "or export --part encoder alone")):
        assert export(make_checkpoint(replaced), tmp_path / "out", "--target", target) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error and TARGETS[target].gdn.why in error
        assert not list(tmp_path.iterdir())
    one = ["--ckpt", str(make_checkpoint("encoder")), "--part", "encoder", "--out", str(tmp_path / "e.onnx")]
    assert main([*one, "--input_size", "32", "--target", target]) == 0


@pytest.mark.parametrize("target", ["rknn", "tpu-mlir", "openvino"])
def test_gdn_is_exported_with_a_warning_where_it_runs(
    target: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    assert export(make_checkpoint("none"), tmp_path / "out", "--target", target) == 0
    warned = [record.message for record in caplog.records if "holds GDN" in record.message]
    assert len(warned) == 3 and all(TARGETS[target].gdn.why in one for one in warned)
    assert (tmp_path / "out" / "export.json").is_file()
