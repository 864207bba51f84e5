"""Whether an ONNX file holds more than layers with their weights. Read without onnx or onnxruntime.

A part is a chain of layers. Subgraphs (Loop, If, Scan) and functions can run for ever, external data makes a runtime
open other files, and operators such as Pad or RandomNormal take any memory. The exporter writes none of them.

The format is protobuf; the numbers are those of onnx.proto.
"""

import re
from collections.abc import Iterator

from relic.errors import InputError

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = 5, 6, 10, 11, (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

_ATTRIBUTE_INTS = 8
_LAYERS = re.compile(
    "Abs|Add|BatchNormalization|Cast|Clip|Concat|Constant|Conv|ConvInteger|ConvTranspose|DepthToSpace|DequantizeLinear"
    "|Div|DynamicQuantizeLinear|Flatten|FusedConv|Gather|Gemm|Identity|LeakyRelu|MatMul|Max|Min|Mul|Neg|PRelu|Pow"
    "|QLinearAdd|QLinearConv|QLinearMul|QuantizeLinear|Reciprocal|Relu|Reshape|Round|Shape|Sigmoid|Slice|Softplus"
    "|SpaceToDepth|Split|Sqrt|Squeeze|Sub|Tanh|Transpose|Unsqueeze"
)
"""Operators of exports, and those that tools which simplify or quantize an export write instead."""
_MOST_CONV_SIZE = 64
"""Kernel, stride, dilation and padding of a convolution; those of exports are below 10."""
_DAMAGED = "not an ONNX file, or a damaged one"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_layers_only(data: bytes) -> None:
    """Raise InputError if the file holds subgraphs, functions or external data. ValueError: it is no ONNX file."""
    view = memoryview(data)
    graphs = 0
    for field, value in _fields(view):
        if field == _MODEL_FUNCTIONS:
            raise InputError("it defines functions, which no export has")
        if field == _MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value))
    if graphs != 1:
        raise ValueError(_DAMAGED)


def _check_graph(graph: memoryview) -> None:
    for field, value in _fields(graph):
        if field == _GRAPH_SPARSE:
            raise InputError("it holds sparse weights, which no export has")
        if field == _GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        if field == _GRAPH_NODE:
            _check_node(_message(value))


def _check_node(node: memoryview) -> None:
    operator = ""
    attributes = []
    for field, value in _fields(node):
        if field == _NODE_OPERATOR:
            operator = bytes(_message(value)).decode(errors="replace")
        if field == _NODE_ATTRIBUTE:
            attributes.append(_message(value))
    for attribute in attributes:
        for field, value in _fields(attribute):
            if field == _ATTRIBUTE_INTS and "Conv" in operator and _largest(value) > _MOST_CONV_SIZE:
                raise InputError(f"its {operator} has a size of {_largest(value)}, which no export has")
            if field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS, *_ATTRIBUTE_SPARSE):
                raise InputError(f"its operator {operator:.40} runs a graph of its own, which no export has")
            if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                _check_tensor(_message(value))

    if not _LAYERS.fullmatch(operator):
        raise InputError(f"it holds the operator {operator!r:.40}, which no export has")


def _largest(value: int | memoryview) -> int:
    """The largest of one number, or of several in one field. Negative ones are over 2^63."""
    if isinstance(value, int):
        return value
    place, largest = 0, 0
    while place < len(value):
        number, place = _varint(value, place)
        largest = max(largest, number)
    return largest


def _check_tensor(tensor: memoryview) -> None:
    for field, value in _fields(tensor):
        if field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and value != 0):
            raise InputError("its weights are in another file, which no export has")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError(_DAMAGED)
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: number and value. Raises ValueError for bytes that are none."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind, size = key & 7, 0
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(_DAMAGED)
        if place + size > len(message):
            raise ValueError(_DAMAGED)
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError(_DAMAGED)
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(_DAMAGED)
