"""The stream format, in plain Python: rANS with 64-bit states and 32-bit words, as CompressAI's `ans` module writes it.

The coder is Duda's rANS (arXiv 1311.2540) in the form of Giesen's ryg_rans (`rans64.h`). A symbol of cumulative
frequency `start` and frequency `width`, both in 1/65536, takes the state x to

    (x // width) * 65536 + x % width + start                    decoding: width * (x >> 16) + (x & 65535) - start

The state stays in [2^31, 2^63). If the next state would be too large, the encoder first moves the low 32 bits of the
state to the stream. When the state falls below 2^31, the decoder takes one word back. The encoder starts with 2^31 at
the *last* symbol, so the decoder reads forwards. The stream holds the final state (low word, high word) and then the
words, newest first, all little-endian.

A symbol is coded with a row: a CDF in 1/65536, from 0 to 65536. `runs` says with which. The row's last interval is an
escape, not a value. A value v = symbol - offset outside [0, escape) is coded as the escape, then the number of digits,
then the digits, lowest first. Each of them is a 4-bit digit with uniform probability: the lowest 4 bits of the state.
The digits are those of

    -2 v - 1                where v < 0                         2 (v - escape)          where v >= escape
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from relic.errors import InputError

PRECISION_BITS = 16
CDF_END = 1 << PRECISION_BITS
STATE_LOW = 1 << 31
STATE_HIGH = 1 << 63
WORD_BYTES = 4
DIGIT_BITS = 4
SYMBOL_LIMIT = 1 << 26
"""Largest |symbol|. CompressAI's encoder does not end for an escape of 8 digits, which values from 2^27 on need."""
OFFSET_LIMIT = 1 << 24
"""Largest |offset| of a table. With SYMBOL_LIMIT, no escape needs more than 7 digits."""

DAMAGED = "the coded symbols are damaged or were not written with these tables: get the file again or encode again"

_WORD_MASK = (1 << 32) - 1
_STATE_MASK = CDF_END - 1
_DIGIT_MASK = (1 << DIGIT_BITS) - 1
_MAX_DIGITS = 7
# A state at or above `width << 47` (for a digit: 2^59) would leave [2^31, 2^63) in the next step.
_WIDTH_SHIFT = 63 - PRECISION_BITS
_DIGIT_FULL = 1 << (63 - DIGIT_BITS)


class Piece(NamedTuple):
    """Symbols in coding order, each with the number of its row."""

    symbols: list[int]
    indexes: list[int]
    rows: list[list[int]]
    """CDFs, each strictly increasing from 0 to 65536 with 3 entries or more."""
    offsets: list[int]
    """The rows' first values, within +-OFFSET_LIMIT."""


def encode(pieces: Sequence[Piece]) -> bytes:
    """Code pieces one after another, to the bytes that CompressAI's `RansEncoder` writes.

    The caller has checked that symbols are within +-SYMBOL_LIMIT.
    """
    state = STATE_LOW
    words: list[int] = []
    for symbols, indexes, rows, offsets in reversed(pieces):
        for symbol, index in zip(reversed(symbols), reversed(indexes), strict=True):
            row = rows[index]
            escape = len(row) - 2
            value = symbol - offsets[index]
            if not 0 <= value < escape:
                for digit in reversed(_escape_digits(value, escape)):
                    if state >= _DIGIT_FULL:
                        words.append(state & _WORD_MASK)
                        state >>= 32
                    state = state << DIGIT_BITS | digit
                value = escape
            start = row[value]
            width = row[value + 1] - start
            if state >= width << _WIDTH_SHIFT:
                words.append(state & _WORD_MASK)
                state >>= 32
            state = (state // width << PRECISION_BITS) + state % width + start
    words += [state >> 32, state & _WORD_MASK]
    return np.array(words[::-1], dtype="<u4").tobytes()


class Reader:
    """Reads back what `encode` wrote, piece by piece.

    Accepts exactly the streams that `encode` writes. Raises InputError for any other bytes: cut, too long, changed, or
    with an escape that the encoder would not write. Takes at most one step per symbol and digit.
    """

    def __init__(self, data: bytes) -> None:
        self._state, self._words = open_stream(data)
        self._words.reverse()

    def read(self, indexes: list[int], rows: Sequence[list[int]], offsets: Sequence[int]) -> list[int]:
        """The next symbols, one per index."""
        state, words = self._state, self._words
        symbols: list[int] = []
        try:
            for index in indexes:
                row = rows[index]
                position = state & _STATE_MASK
                value = bisect_right(row, position) - 1
                start = row[value]
                state = (row[value + 1] - start) * (state >> PRECISION_BITS) + position - start
                if state < STATE_LOW:
                    state = state << 32 | words.pop()
                if value == len(row) - 2:
                    value, state = _read_escape(state, words, value)
                symbols.append(value + offsets[index])
        except IndexError:  # `pop` from an empty list: there are no words left
            raise InputError(DAMAGED) from None
        self._state = state
        if max(symbols) > SYMBOL_LIMIT or min(symbols) < -SYMBOL_LIMIT:
            raise InputError(DAMAGED)
        return symbols

    def close(self) -> None:
        """Raise InputError unless the whole stream has been read."""
        if self._words or self._state != STATE_LOW:
            raise InputError(DAMAGED)


def open_stream(data: bytes) -> tuple[int, list[int]]:
    """The first state of a stream and the words after it, in reading order. Raises InputError if it is not a stream."""
    if len(data) < 2 * WORD_BYTES or len(data) % WORD_BYTES:
        raise InputError(DAMAGED)
    low, high, *words = np.frombuffer(data, dtype="<u4").tolist()
    state = high << 32 | low
    if not STATE_LOW <= state < STATE_HIGH:
        raise InputError(DAMAGED)
    return state, words


def _escape_digits(value: int, escape: int) -> list[int]:
    """What follows an escape: the number of digits, then the digits, lowest first."""
    raw = -2 * value - 1 if value < 0 else 2 * (value - escape)
    count = -(-raw.bit_length() // DIGIT_BITS)
    return [count, *(raw >> (DIGIT_BITS * index) & _DIGIT_MASK for index in range(count))]


def _read_escape(state: int, words: list[int], escape: int) -> tuple[int, int]:
    """The value after an escape, and the next state. Raises InputError if the encoder would write other digits."""
    digits: list[int] = []
    count = 0
    while len(digits) <= count:
        digits.append(state & _DIGIT_MASK)
        state >>= DIGIT_BITS
        if state < STATE_LOW:
            state = state << 32 | words.pop()
        count = digits[0]
    if count > _MAX_DIGITS or (count and not digits[-1]):
        raise InputError(DAMAGED)
    raw = sum(digit << (DIGIT_BITS * index) for index, digit in enumerate(digits[1:]))
    return -(raw >> 1) - 1 if raw & 1 else (raw >> 1) + escape, state
