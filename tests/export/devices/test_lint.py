"""Nodes made by hand get the status that the documents of each device give them."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.devices.lint import lint
from export.devices.rules import SEEN, SOURCES, TARGETS

DECONV5: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4, "output_padding": [1, 1]}
DECONV6: dict[str, Any] = {"kernel_shape": [6, 6], "strides": [2, 2], "pads": [2] * 4}
DECONV2: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
CONV5: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4}
WIDE: dict[str, Any] = {"kernel_shape": [9, 9], "strides": [2, 2], "pads": [4] * 4}
# Operator, attributes -> status on COLUMNS: read off compilers' answers, and off documents for drpai and tidl.
COLUMNS = ("drpai", "rknn", "ethos-u", "qnn", "openvino", "imx500", "tpu-mlir", "tidl")
Y, H, F, U = "supported", "host", "fails", "unknown"
EXPECTED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("Conv", CONV5, (Y, Y, Y, Y, Y, Y, Y, Y)),
    ("Conv", WIDE, (U, Y, Y, Y, Y, Y, Y, U)),
    ("Relu", {}, (Y, Y, Y, Y, Y, Y, Y, Y)),
    ("ConvTranspose", DECONV5, (U, Y, Y, F, Y, F, Y, H)),
    ("ConvTranspose", DECONV6, (U, Y, Y, F, Y, F, Y, H)),
    ("ConvTranspose", DECONV2, (Y, Y, Y, Y, Y, Y, Y, Y)),
    ("ConvTranspose", {**DECONV6, "pads": [1, 1, 3, 3]}, (U, Y, U, F, Y, F, Y, H)),
    ("DepthToSpace", {"blocksize": 2}, (U, Y, Y, Y, Y, Y, Y, Y)),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, (U, Y, U, Y, Y, Y, Y, Y)),
    ("Sqrt", {}, (H, Y, H, U, Y, U, Y, Y)),
    ("Div", {}, (H, Y, H, U, Y, U, Y, Y)),
    ("Round", {}, (H, H, H, U, Y, U, U, H)),
    ("Erf", {}, (U, U, U, U, U, U, U, U)),
]


def graph_of(operator: str, attributes: dict[str, Any], inputs: int = 32) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x", "w"], ["y"], name="it", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [inputs, 1, 1, 1], [0.0] * inputs)
    return helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [weights]))


@pytest.mark.parametrize(("operator", "attributes", "statuses"), EXPECTED)
def test_a_node_has_the_status_that_was_seen(
    operator: str, attributes: dict[str, Any], statuses: tuple[str, ...]
) -> None:
    assert set(COLUMNS) == TARGETS.keys()
    for target, status in zip(COLUMNS, statuses, strict=True):
        (finding,) = lint("encoder", graph_of(operator, attributes), target)
        assert (finding.node, finding.status) == ("it", status), target
        assert (finding.source in SOURCES) is (finding.why != "no rule")


@pytest.mark.parametrize(
    ("inputs", "in_float", "in_int8"), [(48, Y, Y), (56, U, U), (64, F, U), (128, F, U), (192, F, U)]
)
def test_rknn_forgets_output_padding_where_it_splits_channels(inputs: int, in_float: str, in_int8: str) -> None:
    """Seen with one layer on rk3588: 32, 40 and 48 input channels compile, 64 are refused."""
    model = graph_of("ConvTranspose", DECONV5, inputs)
    assert lint("decoder", model, "rknn")[0].status == in_float
    assert lint("decoder", model, "rknn", "int8")[0].status == in_int8
    assert lint("decoder", graph_of("ConvTranspose", DECONV6, inputs), "rknn")[0].status == Y


def test_a_precision_can_change_a_status() -> None:
    assert lint("decoder", graph_of("ConvTranspose", DECONV6), "qnn", "int8")[0].status == Y
    assert lint("decoder", graph_of("ConvTranspose", DECONV6), "qnn")[0].status == F


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
        assert {target.gdn.source, *(rule.source for rule in target.rules)} <= SOURCES.keys()
        assert 13 in target.opsets


def test_the_sources_say_whether_a_compiler_was_run() -> None:
    for name, target in TARGETS.items():
        sources = {target.gdn.source, *(rule.source for rule in target.rules)}
        assert bool(sources & SEEN.keys()) is (name not in ("drpai", "tidl")), name
    assert SOURCES["RKNN 2.5.0"].startswith("seen: RKNN-Toolkit2") and SOURCES["TIDL list"].startswith("read: TI")
