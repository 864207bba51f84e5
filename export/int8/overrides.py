"""Scales and zero points that are known before calibration, by the names of an ONNX part's tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from export.parts import INPUT_NAMES, Part
from relic.quantization.weight_steps import off_borders

Overrides = dict[str, list[dict[str, Any]]]
"""Range, or scale and zero point, of tensors, as onnxruntime's `TensorQuantOverrides` takes them."""


class KnownSteps(NamedTuple):
    """The steps of a ReLU codec that were learnt."""

    activations: Mapping[str, float]
    """Per ReLU, `g_a.1` for example. Its level 0 is 0."""
    weights: Mapping[str, NDArray[np.float32]]
    """Per convolution, the step of each output channel in the order of the ONNX part. Empty: max |w| / 127."""


def known_steps(
    part: Part, model: onnx.ModelProto, known: KnownSteps, ends: tuple[float | None, float | None]
) -> Overrides:
    """What `known` says about the tensors of `model`, the encoder or the decoder.

    `ends`: the steps of the part's input and output; None for one that is not known, whose layer keeps its own steps.
    """
    prefix = prefix_of(part)
    overrides: Overrides = {}
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    steps = [step for name, step in known.activations.items() if name.startswith(prefix)]
    for output, step in zip(outputs, steps, strict=True):
        overrides |= {name: [known_step(step, 0, np.uint8)] for name in interleaved(model, output)}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3]
    given = [channels for name, channels in known.weights.items() if name.startswith(prefix)]
    chain = [ends[0], *(float(np.float32(step)) for step in steps), ends[1]]
    for number, layer in enumerate(layers):
        axis = 0 if layer.op_type == "Conv" else 1
        step_in, step_out = chain[number : number + 2]
        if not given and (step_in is None or step_out is None):
            continue
        channels = torch.from_numpy(given[number]) if given else _channel_steps(model, layer.input[1], axis)
        if step_in is not None and step_out is not None:
            channels = off_borders(channels, step_in, step_out)
        entries = [known_step(step, 0, np.int8) for step in channels.tolist()]
        entries[0]["axis"] = axis
        overrides[layer.input[1]] = entries
    return overrides


def _channel_steps(model: onnx.ModelProto, name: str, axis: int) -> Tensor:
    """The largest weight of each output channel in 127 steps."""
    weights = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)
    largest = np.abs(weights).max(tuple(side for side in range(4) if side != axis)) / np.float32(127)
    return torch.from_numpy(np.where(largest < np.finfo(np.float32).tiny, np.float32(1), largest))


def prefix_of(part: Part) -> str:
    """What the names of a part's layers begin with."""
    return "g_a." if part == "encoder" else "g_s."


def image_steps(model: onnx.ModelProto) -> Overrides:
    """The steps of x, and of x_hat after the Clip operator: those of 8-bit pixels."""
    names = [value.name for value in model.graph.input if value.name == INPUT_NAMES["encoder"]]
    for node in model.graph.node:
        if node.op_type == "Clip":
            names += interleaved(model, node.output[0])
    return {name: [known_step(1 / 255, 0, np.uint8)] for name in names}


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


def known_step(scale: float | np.float32, zero_point: int, kind: type[np.integer[Any]]) -> dict[str, Any]:
    """The entry of a tensor, or of one channel, with this scale."""
    return {"scale": np.array(scale, np.float32), "zero_point": np.array(zero_point, kind)}
