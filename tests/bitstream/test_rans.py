"""The Python coder against CompressAI's compiled coder, and both with bad streams."""

import math
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relic.arrays import Symbols
from relic.bitstream import coder as coder_module
from relic.bitstream.coder import CompiledCoder, PythonCoder, decode_symbols, encode_symbols, load_coder
from relic.bitstream.rans import SYMBOL_LIMIT
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables
from relic.errors import InputError
from tests.bitstream.strategies import make_tables, photo_like, tables_and_symbols, typical_symbols

PYTHON = PythonCoder()
COMPILED = load_coder()

needs_compiled = pytest.mark.skipif(
    not isinstance(COMPILED, CompiledCoder), reason="compressai's compiled coder is not installed"
)
any_coder = pytest.mark.parametrize(
    "coder", [PYTHON, pytest.param(COMPILED, marks=needs_compiled)], ids=["python", "compiled"]
)


def compressai_call(symbols: Symbols, tables: Tables) -> tuple[list[Any], ...]:
    """The arguments that CompressAI's `EntropyModel.compress` gives to its coder; all but the first also decode."""
    indexes = np.broadcast_to(np.arange(len(symbols))[:, None, None], symbols.shape)
    lists = (symbols.ravel(), indexes.ravel(), tables.cdf, tables.cdf_length, tables.offset)
    return tuple(values.tolist() for values in lists)


def shape_of(symbols: Symbols) -> tuple[int, int, int]:
    channels, height, width = symbols.shape
    return channels, height, width


@pytest.mark.commands
@needs_compiled
@settings(max_examples=150, deadline=None)
@given(case=tables_and_symbols())
def test_bytes_are_compressais(case: tuple[Tables, Symbols]) -> None:
    tables, symbols = case
    assume(symbols.size >= 4)  # with fewer, CompressAI's encoder overruns its memory
    ans = sys.modules["compressai.ans"]
    expected = ans.RansEncoder().encode_with_indexes(*compressai_call(symbols, tables))
    for coder in (PYTHON, COMPILED):
        assert encode_symbols(symbols, tables, coder) == expected
    decoded = ans.RansDecoder().decode_with_indexes(expected, *compressai_call(symbols, tables)[1:])
    assert decoded == symbols.ravel().tolist()


@pytest.mark.commands
@settings(max_examples=100, deadline=None)
@given(case=tables_and_symbols())
def test_either_coder_reads_the_others_bytes(case: tuple[Tables, Symbols]) -> None:
    tables, symbols = case
    for encoder, decoder in ((PYTHON, COMPILED), (COMPILED, PYTHON)):
        data = encode_symbols(symbols, tables, encoder)
        decoded = decode_symbols(data, shape_of(symbols), tables, decoder)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.commands
@settings(max_examples=100, deadline=None)
@given(case=tables_and_symbols())
def test_code_length_is_the_real_length(case: tuple[Tables, Symbols]) -> None:
    tables, symbols = case
    bits = 0.0
    for channel, row, offset in zip(symbols.tolist(), tables.rows, tables.offsets, strict=True):
        for value in (symbol - offset for line in channel for symbol in line):
            if 0 <= value < len(row) - 2:
                bits -= math.log2((row[value + 1] - row[value]) / 65536)
            else:
                raw = 2 * (value - len(row) + 2) if value >= 0 else -2 * value - 1
                bits += 4 * (1 + len(f"{raw:x}" if raw else "")) - math.log2((row[-1] - row[-2]) / 65536)
    assert code_length_bits(symbols, tables) == pytest.approx(bits, rel=1e-12)
    size = len(encode_symbols(symbols, tables))
    assert bits / 8 * 0.9999 + 4 <= size <= bits / 8 * 1.0001 + 8


@any_coder
def test_an_image_of_many_parts_round_trips(coder: Any) -> None:
    tables = photo_like(channels=40)
    symbols = typical_symbols(tables, 40, 25)
    for escapes in ([], [(0, 0, 0), (39, 39, 24)]):
        for place in escapes:
            symbols[place] = 5000
        data = encode_symbols(symbols, tables, coder)
        np.testing.assert_array_equal(decode_symbols(data, shape_of(symbols), tables, coder), symbols)


def test_escapes_of_an_image_too_large_to_pad_are_read_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coder_module, "_MAX_PADDING_BYTES", 0)
    tables = photo_like()
    symbols = typical_symbols(tables, 4, 4)
    symbols[3, 2, 1] = -SYMBOL_LIMIT
    data = encode_symbols(symbols, tables)
    np.testing.assert_array_equal(decode_symbols(data, shape_of(symbols), tables), symbols)


@any_coder
def test_every_cut_and_every_addition_is_refused(coder: Any) -> None:
    tables = photo_like()
    symbols = typical_symbols(tables, 5, 5)
    data = encode_symbols(symbols, tables, coder)
    others = [data[:size] for size in range(len(data))] + [data + bytes(4), data + data[-4:], data[:-4] + bytes(4)]
    for other in others:
        with pytest.raises(InputError, match="damaged"):
            decode_symbols(other, shape_of(symbols), tables, coder)


@pytest.mark.commands
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 20),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8),
    outlier=st.sampled_from([0, 300]),
)
def test_mutations_without_any_checksum(seed: int, edits: list[tuple[int, int]], outlier: int) -> None:
    """The mutant is refused, or is what the encoder writes for other symbols (as for a changed digit)."""
    tables = photo_like(seed=seed)
    symbols = typical_symbols(tables, 4, 4, seed=seed)
    symbols[0, 0, 0] += outlier
    data = bytearray(encode_symbols(symbols, tables))
    for place, change in edits:
        data[place % len(data)] ^= change
    results = []
    for coder in (PYTHON, COMPILED):
        try:
            decoded = decode_symbols(bytes(data), shape_of(symbols), tables, coder)
            results.append(encode_symbols(decoded, tables, PYTHON))
        except InputError as error:
            results.append(str(error).encode())
    assert results[0] == results[1]
    assert results[0] == bytes(data) or b"damaged" in results[0]


@any_coder
@settings(max_examples=200, deadline=None)
@given(junk=st.binary(min_size=0, max_size=200), fill=st.sampled_from([b"", b"\xff" * 4000, bytes(4000)]))
def test_junk_is_refused(coder: Any, junk: bytes, fill: bytes) -> None:
    tables = photo_like()
    data = junk[: len(junk) // 4 * 4] + fill
    for start in (b"", struct.pack("<Q", 2**31), struct.pack("<Q", 2**63 - 1)):
        with pytest.raises(InputError, match="damaged"):
            decode_symbols(start + data, (6, 9, 9), tables, coder)


def forge(entries: list[tuple[int, int] | int]) -> bytes:
    """A stream of (start, width) intervals and 4-bit digits, also of those that the encoder would not write."""
    state, words = 2**31, b""
    for entry in reversed(entries):
        start, width, total = (entry, 1, 16) if isinstance(entry, int) else (*entry, 65536)
        if state >= width * 2**63 // total:
            words, state = struct.pack("<I", state % 2**32) + words, state // 2**32
        state = state // width * total + state % width + start
    return struct.pack("<Q", state) + words


VALUE, ESCAPE = (0, 32768), (32768, 32768)
ESCAPES: dict[str, tuple[list[tuple[int, int] | int], int | None]] = {
    "none": ([VALUE], 7),
    "0 digits": ([ESCAPE, 0], 8),
    "1 digit": ([ESCAPE, 1, 3], 5),
    "7 digits": ([ESCAPE, 7, 0, 0, 0, 0, 0, 0, 4], 2**25 + 8),
    "beyond the limit": ([ESCAPE, 7, 0, 0, 0, 0, 0, 0, 8], None),
    "a leading zero": ([ESCAPE, 2, 3, 0], None),
    "8 digits, which CompressAI's encoder cannot write": ([ESCAPE, 8, *[15] * 8], None),
    "14 digits that wrap to a value in range": ([ESCAPE, 14, *[15] * 14], None),
    "15 digits": ([ESCAPE, 15, 0, *[1] * 15], None),
    "30,000 digits": ([ESCAPE, *[15] * 2000, 0, *[3] * 30_000], None),
    "30,000 digits, cut": ([ESCAPE, *[15] * 2000], None),
}


@any_coder
@pytest.mark.parametrize("name", ESCAPES)
def test_forged_escapes(coder: Any, name: str) -> None:
    entries, symbol = ESCAPES[name]
    tables = make_tables([[0, 32768, 65536]], [7])
    data = forge([*entries, VALUE, *entries, VALUE])
    if symbol is not None:
        assert decode_symbols(data, (1, 1, 4), tables, coder).ravel().tolist() == [symbol, 7, symbol, 7]
    else:
        with pytest.raises(InputError, match="damaged"):
            decode_symbols(data, (1, 1, 4), tables, coder)


@pytest.mark.parametrize("symbol", [SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, 2**31 - 1, -(2**31)])
def test_symbols_that_would_hang_compressais_encoder_are_refused(symbol: int) -> None:
    tables = photo_like()
    symbols = typical_symbols(tables, 2, 2)
    symbols[1, 1, 1] = symbol
    with pytest.raises(InputError, match="diverged"):
        encode_symbols(symbols, tables)
