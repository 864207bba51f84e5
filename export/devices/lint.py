"""Check every node of a graph against the rules of a device, without the vendor's compiler."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from onnx import numpy_helper

from export.devices.rules import SOURCES, TARGETS, Rule, Status
from relic.errors import InputError
from relic.options import Parts

if TYPE_CHECKING:
    from export.parts import Part

_UNCOVERED = "no rule"
_OF_GDN = ("Mul", "Sqrt", "Div")

log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """What the rules say about one node of one part."""

    part: "Part"
    node: str
    operator: str
    """With the attributes that rules use, such as `ConvTranspose 5x5/2 output_padding 1`."""
    status: Status
    why: str
    source: str
    """A key of SOURCES; empty where no rule covers the node."""


def refuse_gdn(target: str, parts: "Sequence[Part]", replaced: Parts) -> None:
    """Raise InputError if a part holds GDN and the device's compiler refuses it. Where it runs, say how in the log."""
    if target not in TARGETS:
        return
    gdn = TARGETS[target].gdn
    holding = {"encoder": replaced in ("none", "decoder"), "decoder": replaced in ("none", "encoder")}
    for part in parts:
        if not (any(holding.values()) if part == "full" else holding[part]):
            continue
        if gdn.status != "fails":
            log.warning("--target %s: the %s holds GDN: %s (%s)", target, part, gdn.why, SOURCES[gdn.source])
        else:
            others = [name for name in ("encoder", "decoder") if not holding[name]]
            instead = f", or export --part {others[0]} alone" if others and part != "full" else ""
            raise InputError(
                f"--target {target}: the {part} holds GDN: {gdn.why} ({SOURCES[gdn.source]}); fine-tune with "
                f"train/main.py --replace_parts all{instead}"
            )


def lint(part: "Part", model: onnx.ModelProto, target: str, precision: str = "float32") -> list[Finding]:
    """A finding per node, in the graph's order; none for `generic`. `precision`: what the device computes in."""
    if target not in TARGETS:
        return []
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # INT8 weights
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    findings = []
    for node in model.graph.node:
        values = attributes(node, constants) | {"precision": precision}
        rule = next((rule for rule in TARGETS[target].rules if _covers(rule, node.op_type, values)), None)
        shown = describe_node(node.op_type, values)
        if rule is None:
            findings.append(Finding(part, node.name, shown, "unknown", _UNCOVERED, ""))
        else:
            findings.append(Finding(part, node.name, shown, rule.status, rule.why, rule.source))
    return findings


def refuse_host(target: str, findings: Sequence[Finding]) -> None:
    """Raise InputError if encoder or decoder has nodes that the NPU does not run. `full` is only for checking.

    GDN's nodes are not among them: `refuse_gdn` has decided about them.
    """
    leaving = [one for one in findings if one.status in ("host", "fails") and one.part != "full"]
    leaving = [one for one in leaving if one.operator not in _OF_GDN]
    if leaving:
        first = leaving[0]
        nodes = f"{len(leaving)} nodes" if len(leaving) > 1 else "1 node"
        runs = "does not run" if first.status == "host" else "does not compute rightly or the compiler refuses"
        raise InputError(
            f"--target {target}: the {first.part} has {nodes} that the NPU {runs}, first {first.node} "
            f"({first.operator}): {first.why} ({SOURCES[first.source]}); use --upsample {TARGETS[target].upsample}"
        )


def manifest_entry(target: str, findings: Sequence[Finding]) -> dict[str, Any] | None:
    """The entry of export.json: every node, and the documents of the rules."""
    if target not in TARGETS:
        return None
    documents = {name: SOURCES[name] for name in sorted({one.source for one in findings if one.source})}
    return {"target": target, "nodes": [one._asdict() for one in findings], "sources": documents}


def attributes(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> dict[str, int | str]:
    """The attributes that rules use: square sizes as one number, padding by name, Clip's range, DepthToSpace's mode.

    `inputs`: the input channels of a transposed convolution.

    Padding of a transposed convolution is `same` or `other`. It is `same`, as in TFLite, where the output is `stride`
    times the input, and both ends are cut by the same number of pixels (or the end by one more).
    """
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    found: dict[str, int | str] = {}
    if node.op_type in ("Conv", "ConvTranspose"):
        found = {
            "kernel": _square(given["kernel_shape"]),
            "stride": _square(given.get("strides", [1, 1])),
            "group": given.get("group", 1),
        }
    if node.op_type == "ConvTranspose":
        found["output_padding"] = _square(given.get("output_padding", [0, 0]))
        found["padding"] = "same" if _is_same(given) else "other"
        if node.input[1] in constants:
            found["inputs"] = constants[node.input[1]].dims[0]
    if node.op_type == "DepthToSpace":
        found["mode"] = given.get("mode", b"DCR").decode()
    if node.op_type == "Clip":
        limits = [f"{numpy_helper.to_array(constants[name]).item():g}" for name in node.input[1:] if name in constants]
        found["range"] = "..".join(limits)
    return found


def describe_node(operator: str, values: dict[str, int | str]) -> str:
    """The operator and its attributes in a few words."""
    words = [operator]
    if "kernel" in values:
        words.append(f"{values['kernel']}x{values['kernel']}/{values['stride']}")
    if values.get("output_padding"):
        words.append(f"output_padding {values['output_padding']}")
    return " ".join([*words, *(str(values[name]) for name in ("range", "mode") if name in values)])


def _is_same(given: dict[str, Any]) -> bool:
    """TFLite's SAME cuts off kernel - stride pixels, the smaller half at the beginning."""
    pads = given.get("pads", [0] * 4)
    before, after = zip(*((total // 2, total - total // 2) for total in _excess(given)), strict=True)
    return not any(given.get("output_padding", [0, 0])) and list(pads) == [*before, *after]


def _excess(given: dict[str, Any]) -> list[int]:
    return [kernel - step for kernel, step in zip(given["kernel_shape"], given["strides"], strict=True)]


def _square(sizes: Sequence[int]) -> int:
    """The side of a square; -1 for another shape, which no rule covers."""
    return sizes[0] if len(set(sizes)) == 1 else -1


def _covers(rule: Rule, operator: str, values: dict[str, int | str]) -> bool:
    return rule.operator == operator and all(values.get(name) in allowed for name, allowed in rule.only.items())
