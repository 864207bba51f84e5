"""Nodes made by hand get the status that the documents of each device give them."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.devices.lint import lint
from export.devices.rules import SOURCES, TARGETS

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
