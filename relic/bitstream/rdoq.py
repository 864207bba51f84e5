"""Rate-distortion optimized quantization: the encoder moves symbols by one where the saved bits are worth the error.

The stream stays an ordinary one: any decoder reads it. Nothing is trained. Symbols are int32 (M, h, w).

The cost of a picture is bits + mu x squared error. What a move does to the error is predicted, because one decoder run
per move would be far too slow. The decoder is nearly linear: a symbol of channel m that grows by d adds d x response_m
to the picture, at the symbol's place. So the squared error changes by 2 d <response_m, error> + d^2 |response_m|^2.
The responses are measured once per codec, by running its decoder on single symbols. Moves are made in passes. Each pass
moves symbols that are apart from each other, and then runs the decoder, so that predictions do not add up.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from relic.arrays import Floats, Symbols
from relic.bitstream.runs import coding_runs
from relic.bitstream.tables import Tables, dequantize
from relic.errors import InputError
from relic.options import Rdoq

Synthesise = Callable[[Floats], Floats]
"""The decoder: y_hat (M, h, w) to x_hat (3, h x stride, w x stride), both float32."""

_MAX_VALUE = 255
"""Rates are traded for errors of 8-bit values, as in CompressAI's loss: lmbda x 255^2 x MSE + bpp."""
_REACH = 2
"""Blocks of stride x stride pixels that a symbol changes in each direction: four 5x5 layers of stride 2."""
_IMPULSE = 4
"""Responses are measured with symbols of +-4: an INT8 decoder rounds the pixels, which matters less so."""
_OPEN_SIZE = (16, 16)
"""Latent positions of a measurement, where the decoder takes any size."""
_MU_PER_ENERGY = 6
"""mu x |response|^2 without a lmbda. Measured on tuned codecs of four rates and 6 images of Kodak: a BD-rate of -1.1 %
with 3.5, -3.7 % with 5, -4.6 % with 7, where streams grow. Theory at high rates gives 6 / ln 2 = 8.7."""
_PASSES = 12
_GROUPS = 4
"""Neighbours and channels that follow each other are in different groups. A pass moves one group."""
_ESCAPE_BITS = 12
"""About the digits of a symbol without an interval of its own."""


class RdoqSettings(NamedTuple):
    """The flags `--rdoq` and `--rdoq_lmbda`."""

    effort: Rdoq = "off"
    """`fast` predicts every move once, and only towards 0. `full` makes up to 12 passes in both directions."""
    lmbda: float | None = None
    """What an error is worth, as in CompressAI's loss. None: in proportion to the responses."""

    def check(self) -> None:
        """Raise InputError, naming the flag, for flags that contradict each other."""
        if self.lmbda is None:
            return
        if self.effort == "off":
            raise InputError("--rdoq_lmbda: needs --rdoq fast or --rdoq full")
        if not 0 < self.lmbda < math.inf:
            raise InputError(f"--rdoq_lmbda {self.lmbda}: must be more than 0, and finite")


class Responses(NamedTuple):
    """What one step of one symbol adds to the picture, for each channel."""

    blocks: Floats
    """((2 x reach)^2, 3 x stride^2, M): block by block, row by row, around the symbol."""
    energies: Floats
    """((2 x reach)^2, M): the sum of squares of each block."""


def measure_responses(synthesise: Synthesise, tables: Tables, size: tuple[int, int] | None = None) -> Responses:
    """Run the decoder on single symbols. `size`: the latent rows and columns that it takes; None: any."""
    rows, columns = size or _OPEN_SIZE
    channels, stride, side = tables.num_channels, tables.stride, 2 * _REACH
    blocks = np.zeros((side * side, 3 * stride * stride, channels), np.float32)
    # Symbols that are `side` apart change different pixels, so one run measures several channels.
    places = [(y, x) for y in _centres(rows, side) for x in _centres(columns, side)]
    for first in range(0, channels, len(places)):
        together = list(zip(range(first, channels), places, strict=False))
        changes = []
        for sign in (_IMPULSE, -_IMPULSE):
            symbols = np.zeros((channels, rows, columns), np.int32)
            for channel, (y, x) in together:
                symbols[channel, y, x] = sign
            changes.append(synthesise(dequantize(symbols, tables)))
        response = _in_blocks((changes[0] - changes[1]) / np.float32(2 * _IMPULSE), stride)
        for channel, (y, x) in together:
            for number, (dy, dx) in enumerate(_offsets()):
                if 0 <= y + dy < rows and 0 <= x + dx < columns:
                    blocks[number, :, channel] = response[y + dy, x + dx]
    return Responses(blocks, np.einsum("kpm,kpm->km", blocks, blocks))


MoveSymbols = Callable[[Symbols, Floats], Symbols]
"""Better symbols for an image (3, H, W) in [0, 1]."""


def mover_of(
    synthesise: Synthesise, tables: Tables, settings: RdoqSettings, fixed_size: tuple[int, int] | None
) -> MoveSymbols:
    """A function that moves symbols with one decoder, for any thread. Measures its responses.

    `fixed_size`: height and width in pixels of the only images that it makes; None: any.
    """
    size = None if fixed_size is None else (fixed_size[0] // tables.stride, fixed_size[1] // tables.stride)
    responses = measure_responses(synthesise, tables, size)
    return lambda symbols, image: move_symbols(symbols, image, synthesise, responses, tables, settings)


def move_symbols(
    symbols: Symbols,
    image: Floats,
    synthesise: Synthesise,
    responses: Responses,
    tables: Tables,
    settings: RdoqSettings,
) -> Symbols:
    """The symbols of an image (3, H, W) in [0, 1], moved so that bits + mu x squared error falls.

    A pass that does not lower it, because the predictions were wrong, is taken back.
    """
    effort, lmbda = settings
    if effort == "off" or not symbols.any():
        return symbols
    mu = _mu(symbols, responses, lmbda)
    inside = _inside(symbols.shape[1:], image.shape[1:], tables.stride)
    energy = _around(inside[:, :, None], responses.energies[:, None])

    def weigh(tried: Symbols) -> _Weighed:
        error = _error(tried, image, synthesise, tables)
        bits, down, up = _price(tried, tables)
        return _Weighed(tried, error, bits + mu * float(np.square(error).sum(dtype=np.float64)), down, up)

    def best_steps(now: _Weighed) -> Symbols:
        slope = 2 * _around(_in_blocks(now.error, tables.stride), responses.blocks)
        return _steps(now, mu * (energy - slope), mu * (energy + slope), towards_zero=effort == "fast")

    now = weigh(symbols)
    steps = best_steps(now)
    if effort == "fast":
        return min(now, weigh(symbols + steps), key=lambda each: each.cost).symbols
    rows, columns = np.indices(symbols.shape[1:])
    group = (np.arange(len(symbols))[:, None, None] + columns + 2 * rows) % _GROUPS
    still = 0
    for number in range(_PASSES):
        of_group = np.where(group == number % _GROUPS, steps, 0)
        still += 1
        if of_group.any() and (moved := weigh(now.symbols + of_group)).cost < now.cost:
            now, steps, still = moved, best_steps(moved), 0
        if still == _GROUPS:
            break
    return now.symbols


class _Weighed(NamedTuple):
    """Symbols, what they cost, and what one step of each would save of the bits."""

    symbols: Symbols
    error: Floats
    """x_hat - x, (3, h x stride, w x stride); 0 outside the image."""
    cost: float
    down: Floats
    """(M, h, w)"""
    up: Floats


def _steps(now: _Weighed, down_costs: Floats, up_costs: Floats, *, towards_zero: bool) -> Symbols:
    """-1, 0 or 1 per symbol: the move that lowers the predicted cost most. The costs are those of the error alone."""
    gains = [now.down - down_costs, now.up - up_costs]
    if towards_zero:
        gains = [np.where(now.symbols * step < 0, gain, 0) for step, gain in zip((-1, 1), gains, strict=True)]
    steps: Symbols = np.where(gains[0] >= gains[1], -1, 1).astype(np.int32)
    steps[np.maximum(*gains) <= 0] = 0
    return steps


def _inside(blocks: Sequence[int], size: Sequence[int], stride: int) -> Floats:
    """(h, w): the share of each block that lies inside the image."""
    down, across = (
        np.clip(length / stride - np.arange(count), 0, 1).astype(np.float32)
        for length, count in zip(size, blocks, strict=True)
    )
    shares: Floats = np.outer(down, across)
    return shares


def _around(blocks: Floats, weights: Floats) -> Floats:
    """(M, h, w): at each place, the blocks (h, w, P) around it times the weights ((2 x reach)^2, P, M), summed."""
    rows, columns = blocks.shape[:2]
    blocks = np.pad(blocks, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)))
    total: Floats = np.zeros((rows * columns, weights.shape[2]), np.float32)
    for (dy, dx), weight in zip(_offsets(), weights, strict=True):
        there = blocks[_REACH + dy : _REACH + dy + rows, _REACH + dx : _REACH + dx + columns]
        total += there.reshape(rows * columns, -1) @ weight
    return np.ascontiguousarray(total.T).reshape(-1, rows, columns)


def _price(symbols: Symbols, tables: Tables) -> tuple[float, Floats, Floats]:
    """The code length in bits; what a symbol saves of it if it falls by 1, and if it grows by 1, each (M, h, w).

    That the neighbours of a moved symbol then have other contexts is left out.
    """
    total = 0.0
    saved = np.zeros((2, *symbols.shape), np.float32)
    for run in coding_runs(tables, symbols):
        total += run.rows.bits(run.take(symbols), run.indexes)
        values = run.take(symbols) - run.rows.offset[run.indexes]
        escape = run.rows.escape[run.indexes]
        bits = []
        for step in (0, -1, 1):
            moved = values + step
            escaped = (moved < 0) | (moved >= escape)
            cost = run.rows.cost_bits[run.indexes, np.where(escaped, escape, moved)]
            bits.append(cost + _ESCAPE_BITS * escaped)
        for place, cost in enumerate(bits[1:]):
            run.put(saved[place], bits[0] - cost)
    return total, saved[0], saved[1]


def _error(symbols: Symbols, image: Floats, synthesise: Synthesise, tables: Tables) -> Floats:
    """x_hat - x, see `_Weighed`."""
    height, width = image.shape[1:]
    error = synthesise(dequantize(symbols, tables)).clip(0, 1)
    error[:, :height, :width] -= image
    error[:, height:] = 0
    error[:, :, width:] = 0
    return error


def _mu(symbols: Symbols, responses: Responses, lmbda: float | None) -> float:
    """Bits that a squared error of 1 is worth, of values in [0, 1] summed over pixels and channels."""
    if lmbda is not None:
        return lmbda * _MAX_VALUE**2 / 3
    counts = np.count_nonzero(symbols, axis=(1, 2))
    return _MU_PER_ENERGY * float(counts.sum() / max(counts @ responses.energies.sum(0), np.finfo(np.float32).tiny))


def _in_blocks(image: Floats, stride: int) -> Floats:
    """(3, h x stride, w x stride) as (h, w, 3 x stride^2)."""
    rows, columns = (side // stride for side in image.shape[1:])
    parts = image.reshape(3, rows, stride, columns, stride).transpose(1, 3, 0, 2, 4)
    return parts.reshape(rows, columns, -1)


def _offsets() -> list[tuple[int, int]]:
    reach = range(-_REACH, _REACH)
    return [(dy, dx) for dy in reach for dx in reach]


def _centres(length: int, apart: int) -> list[int]:
    """Positions of which each has `_REACH` others before it and behind it, where `length` allows that."""
    return list(range(_REACH, length - _REACH + 1, apart)) or [length // 2]
