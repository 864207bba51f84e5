"""The order in which the symbols of an image are coded, and the row of each: one walk for encoder and decoder.

Symbols are int32 (M, h, w). Without contexts, channels are coded one after another, each with its own row. With
contexts (`relic.bitstream.contexts`) the rows of a run depend on the symbols of the runs before it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from relic.arrays import Symbols
from relic.bitstream.contexts import Activity, phases
from relic.bitstream.rows import Ints, Rows
from relic.bitstream.tables import Tables

SYMBOLS_PER_CALL = 1 << 14
"""Symbols of whole channels are grouped up to this number: Python lists of all symbols of a large image would take
gigabytes."""


class SymbolRun(NamedTuple):
    """Symbols that are coded with one call. Their rows are known once all runs before have been decoded."""

    channels: Ints | int
    positions: Ints | slice
    """Place of the symbols in an array (M, h * w), as `array[channels, positions]`, in coding order."""
    indexes: Ints
    """The row of each symbol, flat."""
    rows: Rows

    def take(self, symbols: Symbols) -> Symbols:
        """The run's symbols, flat."""
        taken: Symbols = symbols.reshape(len(symbols), -1)[self.channels, self.positions].ravel()
        return taken

    def put(self, array: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Write one value per symbol, in coding order, to its place in an array of the symbols' shape."""
        flat = array.reshape(len(array), -1)
        flat[self.channels, self.positions] = (
            values if isinstance(self.channels, int) else values.reshape(len(self.channels), -1)
        )


def coding_runs(tables: Tables, symbols: Symbols) -> Iterator[SymbolRun]:
    """Yield the runs of an image. A decoder writes the symbols of a run into `symbols` before it asks for the next."""
    count = symbols[0].size
    for channels, rows in tables.row_groups(min(len(symbols), max(1, SYMBOLS_PER_CALL // count))):
        yield SymbolRun(channels, slice(None), np.repeat(np.arange(len(channels)), count), rows)
    contexts = tables.contexts
    if contexts is None:
        return
    activity = Activity(contexts, symbols)
    both = phases(*symbols.shape[1:])
    for number, channel in enumerate(contexts.channel.tolist()):
        activity.begin(number)
        for phase, positions in enumerate(both):
            if len(positions):
                yield SymbolRun(channel, positions, activity.contexts_of(phase, positions), contexts.rows[number])


def code_length_bits(symbols: Symbols, tables: Tables) -> float:
    """The cost in bits of one image's symbols (M, h, w) with these tables, escapes and their digits included.

    It is the sum of -log2(width / 65536), plus 4 bits per digit (see `rans`). A stream is 4 to 8 bytes longer: it ends
    on a 32-bit word and holds the coder's 31-bit start state. Symbols must be within +-SYMBOL_LIMIT.
    """
    return sum(run.rows.bits(run.take(symbols), run.indexes) for run in coding_runs(tables, symbols))


def least_bits_per_position(tables: Tables) -> float:
    """The smallest cost in bits of one latent position (all M channels). It limits what a stream can hold."""
    contexts = tables.contexts
    least = tables.least_bits
    if contexts is None:
        return float(least.sum())
    return float(least[contexts.plain].sum()) + sum(rows.least_bits for rows in contexts.rows)
