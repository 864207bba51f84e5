"""Streams that every runtime writes, read by every runtime.

Shapes: x_N3HW and x_hat_N3HW float32 in [0, 1]; y_NMhw, y_hat_NMhw float32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from relic.arrays import Floats
from relic.bitstream.container import pack, unpack
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.codec.metrics import psnr_db
from relic.columns import in_columns


class CodecRuntime(NamedTuple):
    """What runs both parts of a codec."""

    name: str
    tables: Tables
    encode: Callable[[Floats], Floats]
    """x_N3HW -> y_NMhw."""
    decode: Callable[[Floats], Floats]
    """y_hat_NMhw -> x_hat_N3HW."""


class Pair(NamedTuple):
    """Streams of one runtime in another."""

    writer: str
    reader: str
    other_symbols: int
    """Number of streams whose symbols are not those that were sent."""
    psnr_db: float
    """Mean over the images."""


class Exchange(NamedTuple):
    """All pairs."""

    runtimes: list[str]
    images: int
    pairs: list[Pair]


def exchange_streams(runtimes: Sequence[CodecRuntime], x_N3HW: Floats) -> Exchange:
    """Encode every image in every runtime, and decode every stream in all of them."""
    height, width = x_N3HW.shape[2:]
    sent = {one.name: [quantize(y, one.tables) for y in one.encode(x_N3HW)] for one in runtimes}
    streams = {one.name: [pack(symbols, width, height, one.tables) for symbols in sent[one.name]] for one in runtimes}
    pairs = []
    for reader in runtimes:
        read = {writer: [unpack(data, reader.tables).symbols for data in each] for writer, each in streams.items()}
        y_hat = np.stack([dequantize(symbols, reader.tables) for each in read.values() for symbols in each])
        for writer, x_hat in zip(read, np.split(reader.decode(y_hat), len(read)), strict=True):
            equal = [np.array_equal(a, b) for a, b in zip(sent[writer], read[writer], strict=True)]
            quality = psnr_db(torch.from_numpy(x_N3HW), torch.from_numpy(x_hat)).mean().item()
            pairs.append(Pair(writer, reader.name, equal.count(False), quality))
    return Exchange([one.name for one in runtimes], len(x_N3HW), pairs)


def num_failures(exchange: Exchange) -> int:
    """Number of streams, over all pairs, with other symbols than were sent."""
    return sum(pair.other_symbols for pair in exchange.pairs)


def failures_line(exchange: Exchange) -> str:
    """How many streams had other symbols."""
    return f"{num_failures(exchange)} of {len(exchange.pairs) * exchange.images} streams have other symbols"


def exchange_table(exchange: Exchange) -> str:
    """Mean PSNR: a row per writer, a column per reader."""
    quality = {(pair.writer, pair.reader): pair.psnr_db for pair in exchange.pairs}
    rows = [("PSNR dB: written by, read by", *exchange.runtimes)]
    for writer in exchange.runtimes:
        rows.append((writer, *(f"{quality[writer, reader]:.2f}" for reader in exchange.runtimes)))
    return in_columns(rows)
