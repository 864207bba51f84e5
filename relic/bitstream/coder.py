"""Code symbols to bytes and back: with CompressAI's compiled coder if its wheel is installed, else in plain Python.

Both write the same bytes. The compiled module is loaded from its file, so neither the `compressai` package nor torch,
which the package imports, is loaded. Symbols are int32 (M, h, w) of one image, coded in the order of `runs`.
"""

import functools
import importlib.machinery
import importlib.util
import itertools
import logging
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from relic.arrays import Symbols
from relic.bitstream import rans, runs
from relic.bitstream.rans import DAMAGED, SYMBOL_LIMIT
from relic.bitstream.runs import SymbolRun, coding_runs
from relic.bitstream.tables import Tables
from relic.errors import InputError

logger = logging.getLogger(__name__)

_MODULE = "compressai.ans"
_MAX_PADDING_BYTES = 1 << 26


class Coder(Protocol):
    """Codes checked symbols (M, h, w). `decode` returns the symbols given to `encode`, or raises InputError."""

    name: str

    def encode(self, symbols: Symbols, tables: Tables) -> bytes: ...

    def decode(self, data: bytes, shape: tuple[int, int, int], tables: Tables) -> Symbols: ...


class PythonCoder:
    """`relic.bitstream.rans`: needs no compiled module, and is 4 to 5 times slower than the compiled coder."""

    name = "python"

    def encode(self, symbols: Symbols, tables: Tables) -> bytes:
        return rans.encode(list(_joined(symbols, coding_runs(tables, symbols))))

    def decode(self, data: bytes, shape: tuple[int, int, int], tables: Tables) -> Symbols:
        symbols = np.empty(shape, dtype=np.int32)
        reader = rans.Reader(data)
        for run in coding_runs(tables, symbols):
            run.put(symbols, np.array(reader.read(run.indexes.tolist(), run.rows.lists, run.rows.offsets)))
        reader.close()
        return symbols


class CompiledCoder:
    """CompressAI's `ans`, called so that no data makes it access memory outside its buffers.

    It holds Python's lock (GIL) during the whole call, so threads do not run in parallel. To code on several cores, use
    processes.
    """

    name = _MODULE

    def __init__(self, ans: Any) -> None:
        self._ans = ans

    def encode(self, symbols: Symbols, tables: Tables) -> bytes:
        return self._encode(symbols, coding_runs(tables, symbols))

    def _encode(self, symbols: Symbols, steps: Iterable[SymbolRun]) -> bytes:
        if symbols.size < 4:
            # The coder reserves one word per symbol but writes two more at the end: 1 or 2 symbols overrun its memory.
            return rans.encode(list(_joined(symbols, steps)))
        encoder = self._ans.BufferedRansEncoder()
        for piece in _joined(symbols, steps):
            lengths = [len(row) for row in piece.rows]
            encoder.encode_with_indexes(piece.symbols, piece.indexes, piece.rows, lengths, piece.offsets)
        encoded: bytes = encoder.flush()
        return encoded

    def decode(self, data: bytes, shape: tuple[int, int, int], tables: Tables) -> Symbols:
        symbols = np.empty(shape, dtype=np.int32)
        done = self._decode_runs(data, symbols, tables)
        if done is None:
            return PythonCoder().decode(data, shape, tables)
        # The coder does not report how far it read and does not check its final state. Equal bytes prove both.
        if not _within_limit(symbols) or self._encode(symbols, done) != data:
            raise InputError(DAMAGED)
        return symbols

    def _decode_runs(self, data: bytes, symbols: Symbols, tables: Tables) -> list[SymbolRun] | None:
        """Fill in the symbols and return their runs; None if there are escapes and too many symbols to pad for them.

        The coder does not stop at the end of a cut stream, and an escape can make it read any number of digits.
        Therefore each row gets one more interval, which no state can reach. The coder takes this one for the escape, so
        it never reads digits. Then a symbol reads at most 2 bytes. The cost of the symbols says how far the coder has
        read, and decoding stops before it leaves the padding. (The real cost of a step is within 2^-15 of -log2 p; so
        the padding includes len(data) // 1000.) From the first run with an escape on, `_after_escape` goes on.
        """
        decoder = self._ans.RansDecoder()
        decoder.set_stream(data + bytes(2 * max(runs.SYMBOLS_PER_CALL, symbols[0].size) + len(data) // 1000 + 64))
        bits_left = 8.0 * len(data)
        done: list[SymbolRun] = []
        steps = coding_runs(tables, symbols)
        for run in steps:
            values = _decode_guarded(decoder, run)
            bits_left -= run.rows.guarded_bits[run.indexes, values].sum()
            if bits_left == -np.inf:
                return self._after_escape(data, symbols, done, itertools.chain([run], steps))
            if bits_left < 0:
                raise InputError(DAMAGED)
            run.put(symbols, values + run.rows.offset[run.indexes])
            done.append(run)
        return done

    def _after_escape(
        self, data: bytes, symbols: Symbols, done: list[SymbolRun], steps: Iterable[SymbolRun]
    ) -> list[SymbolRun] | None:
        """Decode `steps`, the runs after `done`, with as much padding as the worst stream can read.

        The coder reads a count of digits in base 15, with 4 bits per step. A count that starts inside the data can ask
        for 15 digits per 4 bits of data: 15 bytes per byte. A count that starts in the padding, whose words are 0,
        finds at most 8 steps of 15 in the state's 63 bits: 120 digits. With the steps and the escape these are 532
        bits, less than 68 bytes per symbol.
        """
        padding_bytes = 15 * len(data) + 68 * symbols.size + 256
        if padding_bytes > _MAX_PADDING_BYTES:
            return None
        decoder = self._ans.RansDecoder()
        decoder.set_stream(data + bytes(padding_bytes))
        for run in done:
            _decode_guarded(decoder, run)
        for run in steps:
            rows = run.rows
            decoded = decoder.decode_stream(run.indexes.tolist(), rows.lists, rows.lengths, rows.offsets)
            run.put(symbols, np.frombuffer(array("i", decoded), dtype=np.int32))
            done.append(run)
        return done


def _decode_guarded(decoder: Any, run: SymbolRun) -> Symbols:
    """The numbers of the intervals of a run, without reading the digits of escapes."""
    rows = run.rows
    decoded = decoder.decode_stream(run.indexes.tolist(), rows.guarded, rows.guarded_lengths, rows.no_offsets)
    return np.frombuffer(array("i", decoded), dtype=np.int32)


def _joined(symbols: Symbols, steps: Iterable[SymbolRun]) -> Iterator[rans.Piece]:
    """Runs as pieces of about SYMBOLS_PER_CALL symbols: each call of the coder copies its rows."""
    piece, last = rans.Piece([], [], [], []), None
    for run in steps:
        if len(piece.symbols) >= runs.SYMBOLS_PER_CALL:
            yield piece
            piece, last = rans.Piece([], [], [], []), None
        if run.rows is not last:
            last, first = run.rows, len(piece.rows)
            piece.rows.extend(last.lists)
            piece.offsets.extend(last.offsets)
        piece.symbols.extend(run.take(symbols).tolist())
        piece.indexes.extend((run.indexes + first).tolist())
    yield piece


def encode_symbols(symbols: Symbols, tables: Tables, coder: Coder | None = None) -> bytes:
    """Code one image's symbols, int32 (M, h, w). Without contexts, to the bytes of CompressAI's
    `EntropyBottleneck.compress`.

    Raises InputError for symbols beyond +-2^26, which `quantize` never returns, and for a shape that the tables lack.
    """
    if symbols.ndim != 3 or len(symbols) != tables.num_channels or not symbols.size:
        raise InputError(f"symbols {symbols.shape} do not belong to tables of {tables.num_channels} channels")
    if not _within_limit(symbols):
        raise InputError(f"symbols beyond {SYMBOL_LIMIT} cannot be coded: the encoder has diverged")
    return (coder or load_coder()).encode(symbols, tables)


def decode_symbols(data: bytes, shape: tuple[int, int, int], tables: Tables, coder: Coder | None = None) -> Symbols:
    """Decode int32 symbols of `shape` (M, h, w). The inverse of `encode_symbols`.

    Raises InputError for any bytes that `encode_symbols` would not write for symbols of this shape. A stream that is
    too short for `shape` with these tables is refused before memory is allocated.
    """
    channels, height, width = shape
    if channels != tables.num_channels or height < 1 or width < 1:
        raise InputError(f"symbols {shape} do not belong to tables of {tables.num_channels} channels")
    rans.open_stream(data)
    # A stream is at least 32 bits longer than the cost of its symbols. The cost of a step is exact to 2^-15.
    if 8 * len(data) - 32 < height * width * runs.least_bits_per_position(tables) * (1 - 2**-14):
        raise InputError(DAMAGED)
    return (coder or load_coder()).decode(data, shape, tables)


@functools.lru_cache(maxsize=1)
def load_coder() -> Coder:
    """The compiled coder if it is installed and can be loaded, else the Python coder, with a warning. Cached."""
    try:
        ans = _load_ans()
    except ImportError as error:
        logger.warning(
            "%s: coding in plain Python, which is slower; to install it: pip install --no-deps compressai", error
        )
        return PythonCoder()
    return CompiledCoder(ans)


def _load_ans() -> ModuleType:
    """Load CompressAI's extension module without its package."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    for folder in _package_folders():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"ans{suffix}"
            if path.is_file():
                return _load_extension(path)
    raise ImportError("compressai's compiled coder is not installed")


def _package_folders() -> list[str]:
    try:
        spec = importlib.util.find_spec("compressai")
    except ValueError:  # sys.modules holds a module of this name without a spec
        return []
    return list(spec.submodule_search_locations or []) if spec else []


def _load_extension(path: Path) -> ModuleType:
    # pybind11 can register a module's classes only once per process. Under another name, a later `import compressai`
    # would load the file again and abort. Under its own name in sys.modules, that import uses this module. (Only the
    # package's attribute `ans` stays unset, and CompressAI does not use it.)
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return sys.modules.setdefault(_MODULE, module)


def _within_limit(symbols: Symbols) -> bool:
    return bool(symbols.min() >= -SYMBOL_LIMIT and symbols.max() <= SYMBOL_LIMIT)
