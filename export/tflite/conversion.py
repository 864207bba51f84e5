"""An INT8 part as a .tflite file with the same integers: TFLite's int8 operators, channels last.

The file takes and gives int8. A pixel p of 0 to 255 is p - 128. A latent is round(y_hat / scale) + zero_point, with the
scale and zero point of the file's input. DepthToSpace becomes RESHAPE, TRANSPOSE, RESHAPE: Vela has no DEPTH_TO_SPACE.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export.tflite.chain import Chain, Convolution, Range, read_chain
from export.tflite.flatbuffer import Fields, Grid, Operator, Table, Tensor, write_model
from relic.errors import InputError

# BuiltinOperator, the version used, BuiltinOptions.
_CONV_2D, _RESHAPE, _PAD, _TRANSPOSE, _TRANSPOSE_CONV = (3, 3, 1), (22, 1, 17), (34, 2, 22), (39, 2, 26), (67, 4, 49)
_SAME, _VALID = 0, 1
_NO_ACTIVATION, _RELU = 0, 1
_LEAST = -128

Shape = tuple[int, ...]
Placed = tuple[int, Shape]
"""The number of a tensor, and its shape (1, H, W, C)."""


def to_tflite(model: onnx.ModelProto, description: str) -> bytes:
    """The .tflite file of an INT8 part. Raises InputError for a part that is not wholly in integers."""
    return _Graph(read_chain(model)).write(description)


class _Graph:
    """Tensors and operators, in the order in which they run."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._tensors: list[Tensor] = []
        self._operators: list[Operator] = []

    def write(self, description: str) -> bytes:
        shape: Shape = (1, *self._chain.shape)
        activation = self._chain.input
        first = last = self._activation("input", shape, activation)
        for layer in self._chain.layers:
            if not isinstance(layer, Convolution):
                last, shape = self._interleave(layer.name, last, shape, activation)
            elif layer.transposed:
                last, shape = self._transposed(layer, last, shape, activation)
                activation = layer.output
            else:
                last, shape = self._convolution(layer, last, shape, activation)
                activation = layer.output
        return write_model(description, self._tensors, self._operators, [first], [last])

    def _convolution(self, layer: Convolution, fed: int, shape: Shape, given: Range) -> Placed:
        kernel, stride, (before, after) = layer.weights_OHWI.shape[1], layer.stride, layer.pads
        _, height, width, channels = shape
        counts = [(side + before + after - kernel) // stride + 1 for side in (height, width)]
        # The rows that are read behind the last one. ONNX's padding may hold one more, which no tap reads.
        below, right = ((n - 1) * stride + kernel - n_in - before for n, n_in in zip(counts, shape[1:3], strict=True))
        padding = _SAME
        if not (_is_same(before, below) and _is_same(before, right)):
            padding = _VALID
            ends = np.array([[0, 0], [before, below], [before, right], [0, 0]], np.int32)
            inputs = [fed, self._constant(f"{layer.name}/pads", ends)]
            padded = (1, height + before + below, width + before + right, channels)
            fed, _ = self._add(_PAD, {}, inputs, f"{layer.name}/padded", padded, given)
        options = _options(layer, padding)
        output = (1, *counts, len(layer.bias))
        return self._add(_CONV_2D, options, [fed, *self._weights(layer, given)], layer.name, output, layer.output)

    def _transposed(self, layer: Convolution, fed: int, shape: Shape, given: Range) -> Placed:
        kernel, stride = layer.weights_OHWI.shape[1], layer.stride
        if sum(layer.pads) != kernel - stride or not _is_same(*layer.pads):
            raise InputError(f"{layer.name} has other padding than TFLite's: export with --upsample subpixel-deconv2")
        output = (1, shape[1] * stride, shape[2] * stride, len(layer.bias))
        weights, bias = self._weights(layer, given)
        inputs = [self._constant(f"{layer.name}/shape", np.array(output, np.int32)), weights, fed, bias]
        return self._add(_TRANSPOSE_CONV, _options(layer, _SAME), inputs, layer.name, output, layer.output)

    def _interleave(self, name: str, fed: int, shape: Shape, given: Range) -> Placed:
        """Channel (2 ry + rx) C + c of place (h, w) becomes channel c of place (2h + ry, 2w + rx)."""
        _, height, width, channels = shape
        fed, _ = self._reshape(f"{name}/rows", fed, (height, width, 2, channels // 2), given)
        order = self._constant(f"{name}/order", np.array([0, 2, 1, 3], np.int32))
        fed, _ = self._add(_TRANSPOSE, {}, [fed, order], f"{name}/turned", (height, 2, width, channels // 2), given)
        return self._reshape(name, fed, (1, 2 * height, 2 * width, channels // 4), given)

    def _reshape(self, name: str, fed: int, shape: Shape, given: Range) -> Placed:
        sizes = np.array(shape, np.int32)
        return self._add(
            _RESHAPE, {0: ("array", sizes)}, [fed, self._constant(f"{name}/shape", sizes)], name, shape, given
        )

    def _weights(self, layer: Convolution, given: Range) -> tuple[int, int]:
        weights = self._constant(f"{layer.name}/weights", layer.weights_OHWI, Grid(layer.scales))
        return weights, self._constant(f"{layer.name}/bias", layer.bias, Grid(np.float32(given.scale) * layer.scales))

    def _add(
        self,
        operator: tuple[int, int, int],
        options: Fields,
        inputs: Sequence[int],
        name: str,
        shape: Shape,
        steps: Range,
    ) -> Placed:
        """Add an operator and its output. Returns the output's number and shape."""
        code, version, options_type = operator
        output = self._activation(name, shape, steps)
        self._operators.append(Operator(code, version, options_type, Table(options), inputs, [output]))
        return output, shape

    def _activation(self, name: str, shape: Shape, steps: Range) -> int:
        self._tensors.append(Tensor(name, shape, "int8", Grid(np.array([steps.scale], np.float32), steps.zero_point)))
        return len(self._tensors) - 1

    def _constant(self, name: str, values: npt.NDArray[Any], grid: Grid | None = None) -> int:
        self._tensors.append(Tensor(name, values.shape, "int8" if values.dtype == np.int8 else "int32", grid, values))
        return len(self._tensors) - 1


def _options(layer: Convolution, padding: int) -> Fields:
    """The fields that Conv2DOptions and TransposeConvOptions share: padding, stride and activation.

    Where the output's range begins at 0, a ReLU changes no number. It is named because Vela's estimate for Ethos-U85 is
    lower with it: 4.9 ms and not 23 ms for a decoder of 6x6 kernels.
    """
    activation = _RELU if layer.output.zero_point == _LEAST else _NO_ACTIVATION
    return {
        0: ("int8", padding),
        1: ("int32", layer.stride),
        2: ("int32", layer.stride),
        3: ("int8", activation),
    }


def _is_same(before: int, after: int) -> bool:
    """Whether padding, or what a transposed convolution cuts off, is split as TFLite's SAME splits it."""
    return 0 <= after - before <= 1
