"""Write TFLite's file format: a flatbuffer of the few tables that a chain of convolutions needs.

Numbers are those of TFLite's schema, version 3 (tensorflow/compiler/mlir/lite/schema/schema.fbs): a field is written by
its place in its table, and an enumeration by its value. Only the package `flatbuffers` is needed, which onnxruntime
needs too.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flatbuffers
import numpy as np
import numpy.typing as npt

VERSION = 3
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
"""Of weights in the file, in bytes. Runtimes read them in place."""
_LAST_OLD_CODE = 127
"""Operators up to this number fit into the field of 8 bits, which old runtimes read."""

Kind = Literal["int8", "uint8", "int32", "uint32", "text", "bytes", "array", "table", "tables"]


Fields = dict[int, tuple[Kind, Any]]
"""Place in the schema -> kind and value. Fields that are left out have their default."""


class Table(NamedTuple):
    """A table by its fields."""

    fields: Fields


class Operator(NamedTuple):
    """An operator that is built in, with the table of its options."""

    code: int
    version: int
    """The first version of the operator that has what is used here."""
    options_type: int
    options: Table
    inputs: Sequence[int]
    """Numbers of tensors."""
    outputs: Sequence[int]


class Grid(NamedTuple):
    """What the integers of a tensor stand for: value = scale (integer - zero_point)."""

    scales: npt.NDArray[np.float32]
    """One, or one per place along `axis`."""
    zero_point: int = 0
    axis: int = 0


class Tensor(NamedTuple):
    """An activation, or a constant with its data."""

    name: str
    shape: Sequence[int]
    dtype: Literal["int8", "int32"]
    grid: Grid | None = None
    data: npt.NDArray[Any] | None = None


_TYPES = {"int32": 2, "int8": 9}


def write_model(
    description: str,
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> bytes:
    """The bytes of a .tflite file with one graph."""
    codes = list(dict.fromkeys((one.code, one.version) for one in operators))
    buffers = [Table({})]  # by the format, buffer 0 is empty and stands for no data
    tables = []
    for one in tensors:
        number = 0
        if one.data is not None:
            number = len(buffers)
            buffers.append(Table({0: ("bytes", np.ascontiguousarray(one.data).tobytes())}))
        tables.append(_tensor(one, number))
    graph = Table(
        {
            0: ("tables", tables),
            1: ("array", np.array(inputs, np.int32)),
            2: ("array", np.array(outputs, np.int32)),
            3: ("tables", [_operator(one, codes.index((one.code, one.version))) for one in operators]),
            4: ("text", "main"),
        }
    )
    model = Table(
        {
            0: ("uint32", VERSION),
            1: ("tables", [_code(*one) for one in codes]),
            2: ("tables", [graph]),
            3: ("text", description),
            4: ("tables", buffers),
        }
    )
    builder = flatbuffers.Builder(0)
    builder.Finish(_write(builder, model), _IDENTIFIER)
    return bytes(builder.Output())


def _code(code: int, version: int) -> Table:
    return Table({0: ("int8", min(code, _LAST_OLD_CODE)), 2: ("int32", version), 3: ("int32", code)})


def _operator(one: Operator, code: int) -> Table:
    return Table(
        {
            0: ("uint32", code),
            1: ("array", np.array(one.inputs, np.int32)),
            2: ("array", np.array(one.outputs, np.int32)),
            3: ("uint8", one.options_type),
            4: ("table", one.options),
        }
    )


def _tensor(one: Tensor, buffer: int) -> Table:
    fields: Fields = {
        0: ("array", np.array(one.shape, np.int32)),
        1: ("int8", _TYPES[one.dtype]),
        2: ("uint32", buffer),
        3: ("text", one.name),
    }
    if one.grid is not None:
        grid: Fields = {
            2: ("array", one.grid.scales.astype(np.float32)),
            3: ("array", np.full(len(one.grid.scales), one.grid.zero_point, np.int64)),
            6: ("int32", one.grid.axis),
        }
        fields[4] = ("table", Table(grid))
    return Table(fields)


def _write(builder: flatbuffers.Builder, table: Table) -> int:
    """Write a table after what it points to. Returns its offset."""
    written = {place: (kind, _prepare(builder, kind, value)) for place, (kind, value) in table.fields.items()}
    builder.StartObject(max(written, default=-1) + 1)
    for place, (kind, value) in written.items():
        # A default of None: the field is written whatever its value is.
        if kind == "int8":
            builder.PrependInt8Slot(place, value, None)
        elif kind == "uint8":
            builder.PrependUint8Slot(place, value, None)
        elif kind == "int32":
            builder.PrependInt32Slot(place, value, None)
        elif kind == "uint32":
            builder.PrependUint32Slot(place, value, None)
        else:
            builder.PrependUOffsetTRelativeSlot(place, value, 0)
    offset: int = builder.EndObject()
    return offset


def _prepare(builder: flatbuffers.Builder, kind: Kind, value: Any) -> int:
    """Write what a field points to. Returns the offset, or the number itself."""
    if kind == "text":
        return int(builder.CreateString(value))
    if kind == "array":
        return int(builder.CreateNumpyVector(value))
    if kind == "table":
        return _write(builder, value)
    if kind == "bytes":
        builder.StartVector(1, len(value), _ALIGNMENT)
        builder.head -= len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value
        return int(builder.EndVector())
    if kind == "tables":
        offsets = [_write(builder, one) for one in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())
    return int(value)
