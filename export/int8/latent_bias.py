"""Move the biases beside the latents so that these are on their 8-bit grid, see `relic.quantization.latent_grid`."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from relic.quantization.latent_grid import LatentGrid


def move_last_bias(encoder: onnx.ModelProto, grid: LatentGrid, medians: NDArray[np.float32]) -> onnx.ModelProto:
    """The float encoder with latents moved to the grid: its last bias plus r - median. `medians`: (M,)."""
    layer = next(node for node in encoder.graph.node if node.output[0] == encoder.graph.output[0].name)
    return _with_bias(encoder, layer, grid.offsets(medians))


def move_first_bias(decoder: onnx.ModelProto, grid: LatentGrid, medians: NDArray[np.float32]) -> onnx.ModelProto:
    """The float decoder for latents that were moved to the grid: its first bias less what r - median adds."""
    layer = next(node for node in decoder.graph.node if decoder.graph.input[0].name in node.input)
    weights = _constant(decoder, layer.input[1]).astype(np.float64)
    return _with_bias(decoder, layer, -added_by(grid.offsets(medians), weights, layer))


def added_by(inputs: NDArray[np.float64], weights: NDArray[np.float64], layer: onnx.NodeProto) -> NDArray[np.float64]:
    """What inputs that have these values (one per channel) everywhere add to each output channel of a convolution.

    A transposed convolution adds another sum to each phase of its outputs; this is their mean.
    """
    transposed = layer.op_type == "ConvTranspose"
    by_input = (weights if transposed else weights.swapaxes(0, 1)).sum((2, 3))  # in, out
    phases = int(np.prod(next(one.ints for one in layer.attribute if one.name == "strides"))) if transposed else 1
    added: NDArray[np.float64] = inputs @ by_input / phases
    return added


def _with_bias(model: onnx.ModelProto, layer: onnx.NodeProto, change: NDArray[np.float64]) -> onnx.ModelProto:
    assert layer.op_type in ("Conv", "ConvTranspose")
    name = layer.input[2]
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    bias = next(tensor for tensor in moved.graph.initializer if tensor.name == name)
    values = (_constant(model, name).astype(np.float64) + change).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, name))
    return moved


def _constant(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = numpy_helper.to_array(
        next(tensor for tensor in model.graph.initializer if tensor.name == name)
    )
    return values
