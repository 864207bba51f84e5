"""Contexts against a brute force with loops, and streams of version 2 in both coders."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.arrays import Symbols
from relic.bitstream.coder import CompiledCoder, PythonCoder, decode_symbols, encode_symbols, load_coder
from relic.bitstream.container import pack, unpack
from relic.bitstream.contexts import CLIP, NEVER, Contexts
from relic.bitstream.runs import code_length_bits, coding_runs
from relic.bitstream.tables import Tables
from relic.errors import InputError
from tests.bitstream.strategies import contexts_of_any_kind, photo_like, typical_symbols

COMPILED = load_coder()
any_coder = pytest.mark.parametrize("coder", [PythonCoder(), COMPILED], ids=["python", "installed"])


def brute_force(symbols: Symbols, tables: Tables) -> list[tuple[int, list[int], int]]:
    """(symbol, CDF, offset) in coding order, from the definitions in `relic.bitstream.contexts`, one by one."""
    contexts = tables.contexts
    assert contexts is not None
    _, height, width = symbols.shape
    cut = np.clip(symbols.astype(np.int64), -CLIP, CLIP).tolist()

    def around(channel: int, row: int, column: int, signed: bool) -> int:
        total = 0
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if 0 <= row + down < height and 0 <= column + right < width:
                value = cut[channel][row + down][column + right]
                total += value if signed else abs(value)
        return total

    found = []
    coded = [channel for channel in range(len(symbols)) if channel not in contexts.channel]
    for channel in coded:
        found += [(symbol, tables.rows[channel], tables.offsets[channel]) for symbol in symbols[channel].ravel()]
    cdfs = [[0, *np.cumsum(part).tolist()] for part in np.split(contexts.width, np.cumsum(contexts.row_length)[:-1])]
    first = 0
    for number, channel in enumerate(contexts.channel.tolist()):
        signed = bool(contexts.signed[number])
        for phase in (0, 1):
            for row in range(height):
                for column in range(width):
                    if (row + column) % 2 != phase:
                        continue
                    level = 0
                    for before in coded:
                        value = cut[before][row][column]
                        blend = 4 * (value if signed else abs(value)) + around(before, row, column, signed)
                        level += int(contexts.weights[number, before]) * blend
                    if phase:
                        level += int(contexts.weights[number, channel]) * around(channel, row, column, signed)
                    context = sum(one <= level for one in contexts.thresholds[number, phase].tolist())
                    index = first + context
                    found.append((symbols[channel, row, column], cdfs[index], int(contexts.row_offset[index])))
        coded.append(channel)
        first += int(contexts.num_rows[number])
    return found


@st.composite
def tables_and_symbols(draw: st.DrawFn) -> tuple[Tables, Symbols]:
    tables = draw(contexts_of_any_kind())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    symbols = typical_symbols(tables, draw(st.integers(1, 6)), draw(st.integers(1, 6)), seed=int(rng.integers(2**32)))
    outside = rng.random(symbols.shape) < draw(st.sampled_from([0.0, 0.03, 1.0]))
    reach = draw(st.sampled_from([3, 1000, 2**26]))
    anywhere = np.clip(symbols + rng.integers(-reach, reach, symbols.shape), -(2**26), 2**26)
    return tables, np.where(outside, anywhere, symbols).astype(np.int32)


@pytest.mark.commands
@settings(max_examples=60, deadline=None)
@given(case=tables_and_symbols())
def test_order_and_rows_are_those_of_the_definition(case: tuple[Tables, Symbols]) -> None:
    tables, symbols = case
    found = []
    for run in coding_runs(tables, symbols):
        for symbol, index in zip(run.take(symbols), run.indexes, strict=True):
            found.append((symbol, run.rows.lists[index], run.rows.offsets[index]))
    assert found == brute_force(symbols, tables)


@pytest.mark.commands
@settings(max_examples=60, deadline=None)
@given(case=tables_and_symbols())
def test_bytes_are_compressais_for_these_rows(case: tuple[Tables, Symbols]) -> None:
    tables, symbols = case
    data = encode_symbols(symbols, tables, PythonCoder())
    assert encode_symbols(symbols, tables, COMPILED) == data
    if isinstance(COMPILED, CompiledCoder) and symbols.size >= 4:
        values, rows, offsets = map(list, zip(*brute_force(symbols, tables), strict=True))
        lists = [int(value) for value in values], list(range(len(rows))), rows, list(map(len, rows)), offsets
        assert sys.modules["compressai.ans"].RansEncoder().encode_with_indexes(*lists) == data
    for coder in (PythonCoder(), COMPILED):
        decoded = decode_symbols(data, symbols.shape, tables, coder)  # type: ignore[arg-type]
        np.testing.assert_array_equal(decoded, symbols)
    bits = code_length_bits(symbols, tables)
    assert bits / 8 * 0.9999 + 4 <= len(data) <= bits / 8 * 1.0001 + 8


@any_coder
@pytest.mark.parametrize("place", [None, (0, 0, 0), (5, 10, 10), (2, 39, 24)])
def test_an_image_of_many_runs_round_trips(coder: Any, place: tuple[int, int, int] | None) -> None:
    tables = replace(photo_like(channels=6), contexts=some_contexts())
    symbols = typical_symbols(tables, 40, 25)
    if place:
        symbols[place] = -5000  # an escape in an early, a middle or a late run
    data = encode_symbols(symbols, tables, coder)
    np.testing.assert_array_equal(decode_symbols(data, (6, 40, 25), tables, coder), symbols)
    for other in (data[:-4], data + bytes(4), data[:-4] + bytes(4)):
        with pytest.raises(InputError, match="damaged"):
            decode_symbols(other, (6, 40, 25), tables, coder)


def some_contexts() -> Contexts:
    """Of channels 4 and 1 of six: two rows, and three in a signed channel."""
    return Contexts(**fields())


def fields() -> dict[str, Any]:
    return {
        "channel": np.array([4, 1]),
        "signed": np.array([0, 1]),
        "weights": np.array([[1, 0, 2, 0, 15, 0], [0, -3, 0, 0, 7, 0]]),
        "thresholds": np.array([[[9, NEVER], [40, NEVER]], [[-20, 15], [-90, 60]]]),
        "num_rows": np.array([2, 3]),
        "row_length": np.array([2, 3, 3, 2, 4]),
        "row_offset": np.array([0, -1, -4, 0, 1]),
        "width": np.array([65000, 536, 30000, 35000, 536, 1, 65534, 1, 65535, 1, 16384, 16384, 16384, 16384]),
    }


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("channel", [4, 4], "repeats a channel"),
        ("channel", [4, 6], "not there"),
        ("channel", [4, -1], "integers of its range"),
        ("channel", [4], "wrong shapes"),
        ("channel", 4, "wrong shapes"),
        ("signed", [0, 2], "sign"),
        ("weights", [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], "coded later"),
        ("weights", [[0] * 6], "wrong shapes"),
        ("weights", [[0] * 6, [0, 128, 0, 0, 0, 0]], "integers of its range"),
        ("weights", np.zeros((2, 6)), "integers of its range"),
        ("thresholds", [[[9, NEVER], [40, NEVER]], [[16, 15], [-90, 60]]], "fall"),
        ("thresholds", [[[9, 10], [40, NEVER]], [[-20, 15], [-90, 60]]], "without a row"),
        ("thresholds", [[9, NEVER], [40, NEVER]], "wrong shapes"),
        ("num_rows", [1, 4], "fewer than 2 rows"),
        ("num_rows", [2, 4], "wrong shapes"),
        ("row_length", [2, 3, 3, 1, 5], "fewer than 2 intervals"),
        ("row_length", [2, 3, 3, 2, 5], "wrong shapes"),
        ("row_length", [3, 2, 3, 2, 4], "does not add up"),
        ("row_offset", [0, -1, -4, 0, 2**24 + 1], "offset beyond"),
        ("width", [65000, 536, 30000, 35000, 536, 0, 65535, 1, 65535, 1, 16384, 16384, 16384, 16384], "width 0"),
        ("width", [65000, 536, 30000, 35000, 536, 1, 65534, 1, 65536, 1, 16384, 16384, 16384, 16384], "of its range"),
    ],
)
def test_contexts_that_cannot_code_are_refused(name: str, change: Any, fault: str) -> None:
    some_contexts()
    with pytest.raises(InputError, match=fault):
        Contexts(**{**fields(), name: np.array(change)})


def test_arrays_are_refused_by_their_size_before_they_are_copied() -> None:
    for name in fields():
        with pytest.raises(InputError, match=f"{name} has 8,388,609 entries"):
            Contexts(**{**fields(), name: np.broadcast_to(np.int32(1), 2**23 + 1)})


def test_levels_that_float32_cannot_hold_are_refused() -> None:
    weights = np.zeros((1, 400), np.int64)
    weights[:, 1:] = 127
    one = {"channel": [0], "signed": [0], "thresholds": [[[3], [3]]], "num_rows": [2], "row_length": [2, 2]}
    with pytest.raises(InputError, match="beyond 2\\^24"):
        Contexts(weights=weights, row_offset=np.zeros(2, int), width=np.array([9, 65527] * 2), **map_arrays(one))


def map_arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value) for name, value in values.items()}


def test_contexts_of_another_codec_are_refused() -> None:
    with pytest.raises(InputError, match="5 channels with contexts for 6"):
        replace(photo_like(channels=5), contexts=some_contexts())


@settings(max_examples=25, deadline=None)
@given(tables=contexts_of_any_kind())
def test_a_saved_file_gives_the_same_tables(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")
    tables.save(folder / "a.npz")
    loaded = Tables.load(folder / "a.npz")
    assert loaded == tables != tables.plain()
    assert loaded.digest == tables.plain().digest == tables.plain().stream_digest
    assert loaded.contexts is not None and tables.contexts is not None
    for name, array in tables.contexts.stored().items():
        np.testing.assert_array_equal(getattr(loaded.contexts, name), array)
    loaded.save(folder / "b.npz")
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()


def test_a_file_without_its_contexts_is_refused(tmp_path: Path) -> None:
    replace(photo_like(), contexts=some_contexts()).save(tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    for name in (name for name in arrays if name.startswith("context_")):
        np.savez(tmp_path / "b.npz", **{key: array for key, array in arrays.items() if key != name})
        with pytest.raises(InputError, match="not a readable table file"):
            Tables.load(tmp_path / "b.npz")


def test_every_number_of_the_contexts_counts() -> None:
    changed: dict[str, Any] = {"signed": [1, 1], "row_offset": [0, -1, -4, 0, 2], "channel": [4, 3]}
    changed |= {"thresholds": [[[8, NEVER], [40, NEVER]], [[-20, 15], [-90, 60]]]}
    changed |= {"weights": [[1, 0, 2, 0, 14, 0], [0, -3, 0, 0, 7, 0]]}
    every = [some_contexts(), *(Contexts(**{**fields(), name: np.array(one)}) for name, one in changed.items())]
    assert len({replace(photo_like(), contexts=one).stream_digest for one in every}) == 6


def test_version_1_is_read_by_tables_with_contexts_and_version_2_only_by_these() -> None:
    tables = replace(photo_like(), contexts=some_contexts())
    symbols = typical_symbols(tables, 3, 5)
    old, new = (pack(symbols, 80, 48, one) for one in (tables.plain(), tables))
    assert (old[4], new[4]) == (1, 2)
    assert old == pack(symbols, 80, 48, photo_like())
    for data in (old, new):
        np.testing.assert_array_equal(unpack(data, tables).symbols, symbols)
    with pytest.raises(InputError, match="with contexts, which these tables lack"):
        unpack(new, tables.plain())
    fewer = {**fields(), "signed": np.array([0, 0])}
    with pytest.raises(InputError, match="written with other tables"):
        unpack(new, replace(tables, contexts=Contexts(**fewer)))
