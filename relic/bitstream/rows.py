"""Rows: the CDFs that one group of symbols is coded with, and what their intervals cost."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from relic.bitstream.rans import CDF_END, DIGIT_BITS, PRECISION_BITS

Ints = npt.NDArray[np.integer[Any]]


class Rows:
    """CDFs from 0 to 65536 and their first symbols, as the coders take them. The last interval is an escape."""

    def __init__(self, lists: list[list[int]], offsets: list[int]) -> None:
        self.lists, self.offsets = lists, offsets
        self.lengths = [len(row) for row in lists]

    @cached_property
    def guarded(self) -> list[list[int]]:
        """The CDFs with one more interval, which no state reaches. See `CompiledCoder`."""
        return [[*row, CDF_END + 1] for row in self.lists]

    @cached_property
    def guarded_lengths(self) -> list[int]:
        return [length + 1 for length in self.lengths]

    @cached_property
    def no_offsets(self) -> list[int]:
        return [0] * len(self.lists)

    @cached_property
    def offset(self) -> npt.NDArray[np.int32]:
        """(R,)"""
        return np.array(self.offsets, dtype=np.int32)

    @cached_property
    def escape(self) -> npt.NDArray[np.int32]:
        """(R,): the number of the escape's interval."""
        return np.array(self.lengths, dtype=np.int32) - 2

    @cached_property
    def cost_bits(self) -> npt.NDArray[np.float64]:
        """(R, longest row - 1): -log2 of each interval's probability; 0 for unused entries."""
        cost = np.zeros((len(self.lists), max(self.lengths) - 1))
        for number, row in enumerate(self.lists):
            cost[number, : len(row) - 1] = PRECISION_BITS - np.log2(np.diff(row))
        return cost

    @cached_property
    def guarded_bits(self) -> npt.NDArray[np.float64]:
        """`cost_bits` with infinite costs of the escapes."""
        cost = self.cost_bits.copy()
        cost[np.arange(len(cost)), self.escape] = np.inf
        return cost

    @cached_property
    def least_bits(self) -> float:
        """The smallest cost of a symbol in any of the rows."""
        return min(float(cost[: length - 1].min()) for cost, length in zip(self.cost_bits, self.lengths, strict=True))

    def bits(self, symbols: Ints, indexes: Ints) -> float:
        """The cost of symbols, each coded with the row of its index: intervals, and 4 bits per digit of an escape."""
        values = symbols - self.offset[indexes]
        escape = self.escape[indexes]
        escaped = (values < 0) | (values >= escape)
        bits = float(self.cost_bits[indexes, np.where(escaped, escape, values)].sum())
        if not escaped.any():
            return bits
        values, escape = values[escaped].astype(np.int64), escape[escaped]
        raw = np.where(values < 0, -2 * values - 1, 2 * (values - escape))
        # frexp's exponent is exactly the bit length, because raw is an integer far below 2^53.
        digits = -(-np.frexp(raw.astype(np.float64))[1] // DIGIT_BITS)
        return bits + DIGIT_BITS * int((1 + digits).sum())
