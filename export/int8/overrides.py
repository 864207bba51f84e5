"""Scales and zero points that are known before calibration, by the names of an ONNX part's tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from export.parts import INPUT_NAMES, Part

Overrides = dict[str, list[dict[str, Any]]]
"""Range, or scale and zero point, of tensors, as onnxruntime's `TensorQuantOverrides` takes them."""


class KnownSteps(NamedTuple):
    """The steps of a ReLU codec that were learnt."""

    activations: Mapping[str, float]
    """Per ReLU, `g_a.1` for example. Its level 0 is 0."""
    weights: Mapping[str, NDArray[np.float32]]
    """Per convolution, the step of each output channel in the order of the ONNX part. Empty: max |w| / 127."""


def known_steps(part: Part, model: onnx.ModelProto, known: KnownSteps) -> Overrides:
    """What `known` says about the tensors of `model`, the encoder or the decoder."""
    prefix = prefix_of(part)
    overrides: Overrides = {}
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    steps = [step for name, step in known.activations.items() if name.startswith(prefix)]
    for output, step in zip(outputs, steps, strict=True):
        entry = {"scale": np.array(step, np.float32), "zero_point": np.array(0, np.uint8)}
        overrides |= {name: [entry] for name in interleaved(model, output)}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3]
    by_layer = [channels for name, channels in known.weights.items() if name.startswith(prefix)]
    for layer, channels in zip(layers, by_layer, strict=True) if by_layer else ():
        axis = 0 if layer.op_type == "Conv" else 1
        entries: list[dict[str, Any]] = [
            {"scale": np.array(step, np.float32), "zero_point": np.array(0, np.int8)} for step in channels
        ]
        entries[0]["axis"] = axis
        overrides[layer.input[1]] = entries
    return overrides


def prefix_of(part: Part) -> str:
    """What the names of a part's layers begin with."""
    return "g_a." if part == "encoder" else "g_s."


def image_ranges(model: onnx.ModelProto) -> Overrides:
    """The ranges of x, and of x_hat after the Clip operator."""
    names = [value.name for value in model.graph.input if value.name == INPUT_NAMES["encoder"]]
    for node in model.graph.node:
        if node.op_type == "Clip":
            names += interleaved(model, node.output[0])
    return {name: as_range(0, 1) for name in names}


def interleaved(model: onnx.ModelProto, name: str) -> list[str]:
    """An activation, and what only has its values in another order: see `export.upsample`."""
    names = [name]
    for node in model.graph.node:
        if reorders(node) and node.input[0] == names[-1]:
            names.append(node.output[0])
    return names


def reorders(node: onnx.NodeProto) -> bool:
    """Whether a node of a float part gives the values of its input in another order."""
    return node.op_type == "DepthToSpace" or (node.op_type == "ConvTranspose" and len(node.input) == 2)


def as_range(low: float, high: float) -> list[dict[str, np.float32]]:
    """The entry of a tensor with values from `low` to `high`."""
    return [{"rmin": np.float32(low), "rmax": np.float32(high)}]
