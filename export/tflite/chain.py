"""Read an INT8 part of an export, a QDQ file, as a chain of integer layers.

onnxruntime's quantizer writes each activation as QuantizeLinear and DequantizeLinear. It drops the ReLU or Clip before
them: integers end where the range ends, which does the same. Weights have a DequantizeLinear of their own.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from relic.errors import InputError

_TO_SIGNED = 128
"""ONNX has activations in uint8, TFLite in int8: the same steps, with numbers smaller by this."""


class Range(NamedTuple):
    """The steps of an activation: value = scale (integer - zero_point), int8."""

    scale: float
    zero_point: int


class Convolution(NamedTuple):
    """A convolution or a transposed one, in integers, with the activation that follows."""

    name: str
    transposed: bool
    weights_OHWI: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    """Of the weights, one per output channel."""
    bias: npt.NDArray[np.int32]
    stride: int
    pads: tuple[int, int]
    """Rows before the first and after the last one. The same for columns."""
    output: Range


class Interleave(NamedTuple):
    """DepthToSpace with blocks of 2x2, in DCR order."""

    name: str


class Chain(NamedTuple):
    """A part: the shape (H, W, C) and the steps of its input, and its layers in order."""

    shape: tuple[int, int, int]
    input: Range
    layers: list[Convolution | Interleave]


def read_chain(model: onnx.ModelProto) -> Chain:
    """The chain of a part. Raises InputError for a node that is not in integers, and says how to export without it."""
    return _ChainReader(model).read()


class _ChainReader:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._graph = graph
        self._values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._users = {name: node for node in graph.node for name in node.input[:1]}

    def read(self) -> Chain:
        fed = self._graph.input[0]
        sizes = [size.dim_value for size in fed.type.tensor_type.shape.dim]
        if len(sizes) != 4 or sizes[0] != 1 or min(sizes) < 1:
            raise InputError("its input has no fixed size of one image: export without --dynamic and --batch")
        _, channels, height, width = sizes
        start = activation = self._range_of(fed.name)
        layers: list[Convolution | Interleave] = []
        name, end = fed.name, self._graph.output[0].name
        while name != end:
            node = self._users[name]
            if node.op_type in ("Conv", "ConvTranspose"):
                layer = self._convolution(node, activation)
                activation = layer.output
                layers.append(layer)
            elif node.op_type == "DepthToSpace":
                layers.append(self._interleave(node, activation))
            elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                raise InputError(
                    f"{node.name} ({node.op_type}) is computed in float32: INT8 has no form of GDN's operators; "
                    "fine-tune with --replace_parts all"
                )
            name = node.output[0]
        return Chain((height, width, channels), start, layers)

    def _range_of(self, name: str) -> Range:
        """The range that an activation is rounded to."""
        node = self._users.get(name)
        if node is None or node.op_type != "QuantizeLinear":
            raise InputError(f"{name} is no 8-bit activation: export with --int8, and without --int8_keep_last")
        scale, zero_point = (self._values[each] for each in node.input[1:])
        return Range(float(scale), int(zero_point) - _TO_SIGNED)

    def _convolution(self, node: onnx.NodeProto, fed: Range) -> Convolution:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        output = self._range_of(node.output[0])
        weights, scales = self._constant(node, node.input[1])
        transposed = node.op_type == "ConvTranspose"
        weights = weights.transpose(1, 2, 3, 0) if transposed else weights.transpose(0, 2, 3, 1)
        bias = np.zeros(len(weights), np.int32)
        if len(node.input) > 2:
            bias, steps = self._constant(node, node.input[2])
            assert np.allclose(steps, fed.scale * scales, rtol=1e-4), "onnxruntime's rule for biases"
        (stride,) = set(given["strides"])
        top, left, bottom, right = given.get("pads", [0] * 4)
        assert (top, bottom) == (left, right), node.name
        (more,) = set(given.get("output_padding", [0]))
        if more:  # the same function with taps of value 0 instead: see export/upsample.py
            weights = np.pad(weights, ((0, 0), (0, more), (0, more), (0, 0)))
        return Convolution(node.name, transposed, weights, scales, bias, stride, (top, bottom), output)

    def _interleave(self, node: onnx.NodeProto, fed: Range) -> Interleave:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert (given["blocksize"], given.get("mode", b"DCR")) == (2, b"DCR"), node.name
        following = self._users.get(node.output[0])
        if following is not None and self._range_of(node.output[0]) != fed:
            raise InputError(f"{node.name} is rounded again after it: export with --upsample subpixel-deconv2")
        return Interleave(node.name)

    def _constant(self, node: onnx.NodeProto, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """The integers of a weight or bias, and their scales, one per output channel."""
        maker = self._makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            raise InputError(f"{node.name} has weights in float32: export with --int8, and without --int8_keep_last")
        values, scales = (self._values[each] for each in maker.input[:2])
        assert len(maker.input) < 3 or not self._values[maker.input[2]].any(), "weights are symmetric about 0"
        return values, np.atleast_1d(scales)
