"""CompressAI's decoder checks no bounds. Here its algorithm with bounds checks reads mutated streams."""

import random
import struct
from bisect import bisect_right
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from relic.bitstream import runs
from relic.bitstream.coder import CompiledCoder, decode_symbols, encode_symbols, load_coder
from relic.bitstream.tables import Tables
from relic.errors import InputError
from tests.bitstream.strategies import make_tables, photo_like, typical_symbols, with_contexts


class BoundedDecoder:
    """`RansDecoder` after its source (`rans_interface.cpp`), with an AssertionError for access outside its memory."""

    def set_stream(self, data: bytes) -> None:
        low, high, *self.words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").tolist()
        self.state, self.place = high << 32 | low, 0

    def decode_with_indexes(self, data: bytes, *arguments: list[Any]) -> list[int]:
        self.set_stream(data)
        return self.decode_stream(*arguments)

    def decode_stream(self, indexes: list[Any], rows: list[Any], lengths: list[Any], offsets: list[Any]) -> list[int]:
        symbols = []
        for index in indexes:
            row, escape = rows[index], lengths[index] - 2
            cumulative = self.state % 65536
            value = bisect_right(row, cumulative) - 1
            self.advance((row[value + 1] - row[value]) * (self.state >> 16) + cumulative - row[value])
            if value == escape:
                value = self.escaped(escape)
            symbols.append(value + offsets[index])
        return symbols

    def escaped(self, escape: int) -> int:
        digit = count = self.digit()
        while digit == 15:
            digit = self.digit()
            count += digit
        raw = 0
        for place in range(count):
            raw |= self.digit() << (4 * place % 32)
        signed = (raw & 0xFFFFFFFF) - (raw >> 31 & 1) * 2**32
        return -(signed >> 1) - 1 if signed & 1 else (signed >> 1) + escape

    def digit(self) -> int:
        digit = self.state & 15
        self.advance(self.state >> 4)
        size: int = digit
        return size

    def advance(self, state: int) -> None:
        if state < 2**31:
            assert self.place < len(self.words), "read past the end"
            state = state << 32 | self.words[self.place]
            self.place += 1
        self.state = state


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> CompiledCoder:
    """The coder with small groups of channels, so that a short stream has several."""
    installed = load_coder()
    if not isinstance(installed, CompiledCoder):
        pytest.skip("compressai's compiled coder is not installed")
    monkeypatch.setattr(runs, "SYMBOLS_PER_CALL", 8)
    encoder = installed._ans.BufferedRansEncoder
    return CompiledCoder(SimpleNamespace(RansDecoder=BoundedDecoder, BufferedRansEncoder=encoder))


def hostile(rng: random.Random, tables: Tables) -> bytes:
    """Random bytes, cut streams, and a chosen state followed by ones, zeros or noise."""
    if rng.random() < 0.3:
        data = encode_symbols(typical_symbols(tables, 6, 6, seed=rng.randrange(1000)), tables)
        return data[: rng.randrange(8, len(data) + 1) // 4 * 4]
    runs = [rng.choice([b"\xff\xff\xff\xff", bytes(4), rng.randbytes(4)]) * rng.choice([0, 1, 3, 40]) for _ in range(4)]
    start = rng.choice([2**31, 2**63 - 1, 2**62 | rng.getrandbits(62), 2**63 - 1 - 0xFFFF + rng.getrandbits(16)])
    return struct.pack("<Q", start) + b"".join(runs)


@pytest.mark.parametrize(
    "tables",
    [
        make_tables([[0, 32768, 65536]] * 5, [0] * 5),
        make_tables([[0, 1, 65536]] * 5, [0] * 5),
        make_tables([[0, 65535, 65536]] * 5, [0] * 5),
        make_tables([[0, 1, 2, 65535, 65536]] * 5, [-1] * 5),
        photo_like(channels=5),
        *(with_contexts(channels=5, seed=seed) for seed in range(4)),
    ],
    ids=["even", "all escapes", "no escapes", "rare escapes", "photo", *(f"contexts {seed}" for seed in range(4))],
)
def test_no_stream_is_read_past_its_padding(bounded: CompiledCoder, tables: Tables) -> None:
    rng = random.Random(0)
    for _ in range(200):
        data = hostile(rng, tables)
        side = rng.choice([1, 2, 5, 12])
        try:
            symbols = decode_symbols(data, (5, side, side), tables, bounded)
        except InputError:
            continue
        assert encode_symbols(symbols, tables) == data


def test_the_bounded_decoder_is_the_compiled_one(bounded: CompiledCoder) -> None:
    tables = photo_like(channels=5)
    symbols = typical_symbols(tables, 4, 4)
    symbols[0, 0, 0], symbols[4, 3, 3] = 1000, -70_000
    data = encode_symbols(symbols, tables)
    indexes = np.repeat(np.arange(5), 16).tolist()
    decoded = BoundedDecoder().decode_with_indexes(
        data, indexes, tables.rows, tables.cdf_length.tolist(), tables.offsets
    )
    assert decoded == symbols.ravel().tolist()
    with pytest.raises(AssertionError, match="past the end"):
        BoundedDecoder().decode_with_indexes(
            data[:-4], indexes, tables.rows, tables.cdf_length.tolist(), tables.offsets
        )
