"""Take back what the rounding of weights adds to a layer's outputs on average (Nagel et al. 2019, arXiv 1906.04721).

Calibrated activations have means of several standard deviations. A weight's rounding error times such a mean is a
constant, and so part of the bias.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.int8.inputs import load
from export.int8.latent_bias import added_by
from export.int8.quality import WithActivations

_INPUTS = 32
"""Of the calibration's inputs; the means of channels need no more."""


def correct_biases(model: onnx.ModelProto, int8: onnx.ModelProto, inputs: Sequence[Path]) -> None:
    """Change the biases of `int8`, which was made of the float part `model`. `inputs`: files of that part's inputs."""
    exact, rounded = _constants(model), _constants(int8)
    makers = {node.output[0]: node for node in int8.graph.node}
    dequantizing = {  # by node: how its weights and biases are read; layers that stay in float are left out
        node.name: [makers[name] for name in node.input[1:]]
        for node in int8.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and all(name in makers for name in node.input[1:])
    }
    layers = [node for node in model.graph.node if len(node.input) == 3 and node.name in dequantizing]
    means = _means(model, {layer.input[0] for layer in layers}, inputs)
    changed = {}
    for layer in layers:
        weights, bias = dequantizing[layer.name]
        side = 0 if layer.op_type == "Conv" else 1
        steps = rounded[weights.input[1]].astype(np.float64).reshape([-1 if each == side else 1 for each in range(4)])
        error = rounded[weights.input[0]] * steps - exact[layer.input[1]]
        units = added_by(means[layer.input[0]], error, layer) / rounded[bias.input[1]]
        changed[bias.input[0]] = rounded[bias.input[0]] - np.rint(units).astype(np.int32)
    for tensor in int8.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))


def _means(model: onnx.ModelProto, names: set[str], inputs: Sequence[Path]) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of these activations."""
    run = WithActivations(model, list(names))
    chosen = [inputs[place] for place in np.linspace(0, len(inputs) - 1, min(_INPUTS, len(inputs)), dtype=int)]
    found = [{name: values.mean((0, 2, 3), np.float64) for name, values in run(load(file)).items()} for file in chosen]
    return {name: np.mean([one[name] for one in found], 0) for name in names}


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
