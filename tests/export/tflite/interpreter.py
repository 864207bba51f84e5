"""A .tflite file read and run in numpy, by TFLite's schema and its rules for int8.

Fields are found by the names that TFLite's schema gives them and not by the exporter's code. Sums are exact integers.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[Any]


class Reader:
    """One table of a flatbuffer, by its position."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.fields = position - self.number("<i", position)

    def number(self, kind: str, position: int) -> int:
        return int(struct.unpack_from(kind, self.data, position)[0])

    def field(self, place: int) -> int:
        """Where the value of a field is; 0 if the table leaves it out."""
        inside = self.number("<H", self.fields) > 4 + 2 * place
        offset = self.number("<H", self.fields + 4 + 2 * place) if inside else 0
        return self.position + offset if offset else 0

    def get(self, place: int, kind: str, default: int = 0) -> int:
        position = self.field(place)
        return self.number(kind, position) if position else default

    def _vector(self, place: int) -> tuple[int, int]:
        position = self.field(place)
        if not position:
            return 0, 0
        start = position + self.number("<I", position)
        return start + 4, self.number("<I", start)

    def array(self, place: int, dtype: Any) -> Integers:
        start, count = self._vector(place)
        return np.frombuffer(self.data, dtype, count, start) if count else np.zeros(0, dtype)

    def table(self, place: int) -> "Reader":
        position = self.field(place)
        return Reader(self.data, position + self.number("<I", position))

    def tables(self, place: int) -> list["Reader"]:
        start, count = self._vector(place)
        places = [start + 4 * number for number in range(count)]
        return [Reader(self.data, one + self.number("<I", one)) for one in places]

    def text(self, place: int) -> str:
        return self.array(place, np.uint8).tobytes().decode()


class Interpreter:
    """The one graph of a file."""

    def __init__(self, data: bytes) -> None:
        assert data[4:8] == b"TFL3"
        model = Reader(data, struct.unpack_from("<I", data)[0])
        assert model.get(0, "<I") == 3
        self.description = model.text(3)
        self.codes = [one.get(3, "<i") for one in model.tables(1)]
        (graph,) = model.tables(2)
        buffers = model.tables(4)
        self.tensors = graph.tables(0)
        self.operators = graph.tables(3)
        (self.input,), (self.output,) = graph.array(1, "<i4"), graph.array(2, "<i4")
        self.values: dict[int, Integers] = {}
        for number, tensor in enumerate(self.tensors):
            kind = {2: "<i4", 9: "i1"}[tensor.get(1, "b")]
            start = buffers[tensor.get(2, "<I")]._vector(0)[0]
            assert start % 16 == 0, "runtimes read weights in place"
            if start:
                data_of = buffers[tensor.get(2, "<I")].array(0, np.uint8)
                self.values[number] = data_of.view(kind).reshape(tensor.array(0, "<i4"))

    def names(self) -> list[str]:
        known = {3: "CONV_2D", 22: "RESHAPE", 34: "PAD", 39: "TRANSPOSE", 67: "TRANSPOSE_CONV"}
        return [known[self.codes[one.get(0, "<I")]] for one in self.operators]

    def grid(self, number: int) -> tuple[npt.NDArray[np.float64], int]:
        """Scales and zero point of a tensor."""
        grid = self.tensors[number].table(4)
        return grid.array(2, "<f4").astype(np.float64), int(grid.array(3, "<i8")[0])

    def run(self, values_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Float values in, float values out, as (1, C, H, W)."""
        (scale,), zero = self.grid(self.input)
        steps = np.float32(values_NCHW) / np.float32(scale)
        self.values[self.input] = np.clip(np.rint(steps) + zero, -128, 127).astype(int).transpose(0, 2, 3, 1)
        for name, one in zip(self.names(), self.operators, strict=True):
            (output,) = one.array(2, "<i4")
            inputs = one.array(1, "<i4").tolist()
            found = getattr(self, f"_{name.lower()}")(one, inputs, int(output))
            assert list(found.shape) == self.tensors[output].array(0, "<i4").tolist()
            self.values[int(output)] = found
        (scale,), zero = self.grid(self.output)
        found_NCHW: npt.NDArray[np.float64] = scale * (self.values[self.output].transpose(0, 3, 1, 2) - zero)
        return found_NCHW

    def _reshape(self, one: Reader, inputs: list[int], output: int) -> Integers:
        assert one.table(4).array(0, "<i4").tolist() == self.values[inputs[1]].tolist()
        return self.values[inputs[0]].reshape(self.values[inputs[1]])

    def _transpose(self, one: Reader, inputs: list[int], output: int) -> Integers:
        return self.values[inputs[0]].transpose(self.values[inputs[1]])

    def _pad(self, one: Reader, inputs: list[int], output: int) -> Integers:
        return np.pad(self.values[inputs[0]], self.values[inputs[1]], constant_values=self.grid(inputs[0])[1])

    def _conv_2d(self, one: Reader, inputs: list[int], output: int) -> Integers:
        fed = self.values[inputs[0]] - self.grid(inputs[0])[1]
        weights = self.values[inputs[1]].astype(int)
        kernel, stride = weights.shape[1], one.table(4).get(1, "<i")
        if one.table(4).get(0, "b") == 0:  # SAME
            out = [-(-side // stride) for side in fed.shape[1:3]]
            total = [
                max((count - 1) * stride + kernel - side, 0) for count, side in zip(out, fed.shape[1:3], strict=True)
            ]
            fed = np.pad(fed, ((0, 0), *((each // 2, each - each // 2) for each in total), (0, 0)))
        view = np.lib.stride_tricks.sliding_window_view
        windows = view(fed[0], (kernel, kernel), (0, 1))[::stride, ::stride]  # type: ignore[call-overload]  # two axes
        sums = np.einsum("hwikl,okli->hwo", windows, weights, optimize=True)
        return self._rescaled(sums[None], inputs[0], inputs[1], inputs[2], output)

    def _transpose_conv(self, one: Reader, inputs: list[int], output: int) -> Integers:
        fed = (self.values[inputs[2]] - self.grid(inputs[2])[1])[0]
        weights = self.values[inputs[1]].astype(int)
        kernel, stride = weights.shape[1], one.table(4).get(1, "<i")
        assert one.table(4).get(0, "b") == 0, "SAME"
        height, width, _ = fed.shape
        whole = np.zeros(((height - 1) * stride + kernel, (width - 1) * stride + kernel, len(weights)), int)
        for row in range(kernel):
            for column in range(kernel):
                part = fed @ weights[:, row, column].T
                whole[row : row + height * stride : stride, column : column + width * stride : stride] += part
        cut = (kernel - stride) // 2
        sums = whole[None, cut : cut + height * stride, cut : cut + width * stride]
        assert list(sums.shape) == self.values[inputs[0]].tolist()
        return self._rescaled(sums, inputs[2], inputs[1], inputs[3], output)

    def _rescaled(self, sums: Integers, fed: int, weights: int, bias: int, output: int) -> Integers:
        (given,), scales = self.grid(fed)[0], self.grid(weights)[0]
        (taken,), zero = self.grid(output)
        np.testing.assert_allclose(self.grid(bias)[0], given * scales, rtol=1e-6)
        scaled = (sums + self.values[bias]) * (given * scales / taken)
        rounded: Integers = np.clip(np.rint(scaled) + zero, -128, 127).astype(int)
        return rounded
