"""Devices' rules: nodes made by hand get the status that documents give them, and exports are let through or not."""

import json
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
from onnx import TensorProto, helper

from export.devices.lint import lint
from export.devices.rules import SOURCES, TARGETS
from export.onnx_parts import main
from relic.options import Upsample
from tests.export.conftest import MakeCheckpoint

DECONV5: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4, "output_padding": [1, 1]}
DECONV6: dict[str, Any] = {"kernel_shape": [6, 6], "strides": [2, 2], "pads": [2] * 4}
DECONV2: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
CONV5: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4}
WIDE: dict[str, Any] = {"kernel_shape": [9, 9], "strides": [2, 2], "pads": [4] * 4}
# Operator, attributes -> status on drpai, rknn, ethos-u, tidl, read off the documents by hand.
EXPECTED: list[tuple[str, dict[str, Any], str]] = [
    ("Conv", CONV5, "supported supported supported supported"),
    ("Conv", WIDE, "unknown supported supported unknown"),
    ("Relu", {}, "supported supported supported supported"),
    ("ConvTranspose", DECONV5, "unknown supported host host"),
    ("ConvTranspose", DECONV6, "unknown supported supported host"),
    ("ConvTranspose", DECONV2, "supported supported supported supported"),
    ("ConvTranspose", {**DECONV6, "pads": [1, 1, 3, 3]}, "unknown supported unknown host"),
    ("DepthToSpace", {"blocksize": 2}, "unknown supported host supported"),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, "unknown supported host supported"),
    ("Sqrt", {}, "host supported host supported"),
    ("Div", {}, "host supported host supported"),
    ("Round", {}, "host host host host"),
    ("Erf", {}, "unknown unknown unknown unknown"),
]


def graph_of(operator: str, attributes: dict[str, Any]) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x", "w"], ["y"], name="it", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "w", "y")]
    return helper.make_model(helper.make_graph([node], "g", values[:2], values[2:]))


@pytest.mark.parametrize(("operator", "attributes", "statuses"), EXPECTED)
def test_a_node_has_the_status_that_documents_give_it(operator: str, attributes: dict[str, Any], statuses: str) -> None:
    for target, status in zip(("drpai", "rknn", "ethos-u", "tidl"), statuses.split(), strict=True):
        (finding,) = lint("encoder", graph_of(operator, attributes), target)
        assert (finding.node, finding.status) == ("it", status), target
        assert (finding.source in SOURCES) is (finding.why != "no rule")


def test_clipping_at_other_limits_is_not_taken_for_granted() -> None:
    model = graph_of("Relu", {})
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Clip", ["x", "low", "high"], ["y"], name="it"))
    for low, status in ((0.0, "supported"), (0.5, "unknown")):
        del model.graph.initializer[:]
        model.graph.initializer.extend(
            helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("low", low), ("high", 1.0))
        )
        assert lint("decoder", model, "tidl")[0].status == status


def test_every_rule_names_a_document() -> None:
    for target in TARGETS.values():
        assert {rule.source for rule in target.rules} <= SOURCES.keys()
        assert 13 in target.opsets


def export(checkpoint: Path, out: Path, *flags: str) -> int:
    return main(["--ckpt", str(checkpoint), "--part", "all", "--out", str(out), "--input_size", "32", *flags])


@pytest.mark.parametrize("target", TARGETS)
def test_a_swapped_codec_passes_with_the_upsampling_that_the_target_takes(
    target: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    upsample = TARGETS[target].upsample
    assert export(make_checkpoint("all"), tmp_path / "out", "--target", target, "--upsample", upsample) == 0
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    nodes = said["target"]["nodes"]
    assert said["target"]["target"] == target and said["upsample"] == upsample
    for part in ("encoder", "decoder", "full"):
        found = [node["node"] for node in nodes if node["part"] == part]
        assert found == [node.name for node in onnx.load(tmp_path / "out" / f"{part}.onnx").graph.node]
    assert {node["status"] for node in nodes if node["part"] == "encoder"} == {"supported"}
    assert "host" not in {node["status"] for node in nodes if node["part"] == "decoder"}
    (rounding,) = (node for node in nodes if node["operator"] == "Round")
    assert (rounding["part"], rounding["status"]) == ("full", "host")
    assert {node["source"] for node in nodes} - {""} == said["target"]["sources"].keys()
    assert f"{target}  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "upsample", "says"),
    [
        ("ethos-u", "deconv5", "use --upsample deconv6"),
        ("ethos-u", "subpixel", "use --upsample deconv6"),
        ("tidl", "deconv5", "use --upsample subpixel"),
        ("tidl", "deconv6", "use --upsample subpixel"),
    ],
)
def test_a_part_that_would_leave_the_npu_is_not_written(
    target: str, upsample: Upsample, says: str, tmp_path: Path, make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert upsample in get_args(Upsample)
    assert export(make_checkpoint("all"), tmp_path / "out", "--target", target, "--upsample", upsample) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the decoder has 4 nodes that the NPU does not run" in error and says in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_gdn_is_refused_with_the_reason(
    target: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    for replaced, says in (("none", "the encoder holds GDN"), ("encoder", "or export --part encoder alone")):
        assert export(make_checkpoint(replaced), tmp_path / "out", "--target", target) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error and "no 8-bit form" in error
        assert not list(tmp_path.iterdir())
    one = ["--ckpt", str(make_checkpoint("encoder")), "--part", "encoder", "--out", str(tmp_path / "e.onnx")]
    assert main([*one, "--input_size", "32", "--target", target]) == 0
