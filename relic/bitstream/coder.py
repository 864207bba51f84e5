"""Symbols to bytes and back: by CompressAI's compiled coder where its wheel is installed, else in plain Python.

Both write the same bytes. The compiled module is loaded by its file, so neither the `compressai` package nor torch,
which the package imports, is needed or touched. Symbols are int32 (M, h, w) of one image, coded channel by channel.
"""

import functools
import importlib.machinery
import importlib.util
import logging
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from relic.bitstream import rans
from relic.bitstream.rans import CDF_END, DAMAGED, SYMBOL_LIMIT
from relic.bitstream.tables import Tables
from relic.errors import InputError

logger = logging.getLogger(__name__)

_MODULE = "compressai.ans"
_SYMBOLS_PER_CALL = 1 << 14
_MAX_PADDING_BYTES = 1 << 26


class Coder(Protocol):
    """Codes checked symbols (M, n); `decode` returns what `encode` was given or raises InputError."""

    name: str

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes: ...

    def decode(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]: ...


class PythonCoder:
    """`relic.bitstream.rans`: needs nothing, 4 to 5 times slower than the compiled coder."""

    name = "python"

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes:
        return rans.encode(symbols, tables.rows, tables.offsets)

    def decode(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]:
        return rans.decode(data, tables.rows, tables.offsets, count)


class CompiledCoder:
    """CompressAI's `ans`, fed so that no data makes it leave its memory.

    It holds the GIL from start to end (two threads take as long as one after the other): use processes, not threads,
    to code on several cores.
    """

    name = _MODULE

    def __init__(self, ans: Any) -> None:
        self._ans = ans

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes:
        if symbols.size < 4:
            # It reserves one word a symbol, yet ends with two words more: one or two symbols overrun its memory.
            return rans.encode(symbols, tables.rows, tables.offsets)
        encoder = self._ans.BufferedRansEncoder()
        for part, indexes in _parts(*symbols.shape):
            rows = tables.rows[part]
            lengths = [len(row) for row in rows]
            encoder.encode_with_indexes(symbols[part].ravel().tolist(), indexes, rows, lengths, tables.offsets[part])
        encoded: bytes = encoder.flush()
        return encoded

    def decode(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]:
        symbols = self._decode_unescaped(data, count, tables)
        if symbols is None:
            symbols = self._decode_escaped(data, count, tables)
        # The coder neither says how far it read nor checks its final state; equal bytes prove both.
        if not _within_limit(symbols) or self.encode(symbols, tables) != data:
            raise InputError(DAMAGED)
        return symbols

    def _decode_unescaped(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32] | None:
        """The symbols, or None if an escape occurs.

        The coder runs off the end of a cut stream, and an escape may ask it for any number of digits. Here each row
        gets one interval more that no state can reach: the coder takes that for the escape and reads no digits.
        A symbol then reads 2 bytes at most; and as the symbols' cost says how far it has read, it is stopped before
        it leaves the padding. (A step's real cost is within 2^-15 of -log2 p: hence the thousandth.)
        """
        padding_bytes = 2 * max(_SYMBOLS_PER_CALL, count) + len(data) // 1000 + 64
        decoder = self._ans.RansDecoder()
        decoder.set_stream(data + bytes(padding_bytes))
        values = np.empty((tables.num_channels, count), dtype=np.int32)
        bits_left = 8.0 * len(data)
        for part, indexes in _parts(*values.shape):
            rows = [[*row, CDF_END + 1] for row in tables.rows[part]]
            decoded = decoder.decode_stream(indexes, rows, [len(row) for row in rows], [0] * len(rows))
            values[part] = np.frombuffer(array("i", decoded), dtype=np.int32).reshape(-1, count)
            if (values[part] == tables.cdf_length[part, None] - 2).any():
                return None
            bits_left -= np.take_along_axis(tables.cost_bits[part], values[part], axis=1).sum()
            if bits_left < 0:
                raise InputError(DAMAGED)
        return values + tables.offset[:, None]

    def _decode_escaped(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]:
        """The symbols of a stream with escapes, behind as much padding as the worst stream can read.

        A count of digits is written in base 15, 4 bits a step. Begun inside the data it can ask for 15 digits for each
        4 bits of data: 15 bytes a byte. Begun in the padding, whose words are 0, it finds at most 8 steps of 15 in
        the state's 63 bits: 120 digits, which with the steps and the escape make 532 bits, under 68 bytes a symbol.
        """
        padding_bytes = 15 * len(data) + 68 * tables.num_channels * count + 256
        if padding_bytes > _MAX_PADDING_BYTES:
            return rans.decode(data, tables.rows, tables.offsets, count)
        rows = tables.rows
        indexes = np.repeat(np.arange(len(rows)), count).tolist()
        lengths = [len(row) for row in rows]
        decoder = self._ans.RansDecoder()
        decoded = decoder.decode_with_indexes(data + bytes(padding_bytes), indexes, rows, lengths, tables.offsets)
        return np.frombuffer(array("i", decoded), dtype=np.int32).reshape(-1, count)


def encode_symbols(symbols: npt.NDArray[np.int32], tables: Tables, coder: Coder | None = None) -> bytes:
    """Code one image's symbols, int32 (M, h, w), to the bytes of CompressAI's `EntropyBottleneck.compress`.

    Raises InputError for symbols beyond +-2^26 (`quantize` makes none).
    """
    if symbols.ndim != 3 or len(symbols) != tables.num_channels or not symbols.size:
        raise InputError(f"symbols {symbols.shape} do not belong to tables of {tables.num_channels} channels")
    if not _within_limit(symbols):
        raise InputError(f"symbols beyond {SYMBOL_LIMIT} cannot be coded: the encoder has diverged")
    return (coder or load_coder()).encode(symbols.reshape(tables.num_channels, -1), tables)


def decode_symbols(
    data: bytes, shape: tuple[int, int, int], tables: Tables, coder: Coder | None = None
) -> npt.NDArray[np.int32]:
    """Read back int32 symbols of `shape` (M, h, w); `decode_symbols(encode_symbols(s, t), s.shape, t)` is `s`.

    Any bytes that `encode_symbols` would not write for symbols of this shape raise InputError. Memory is bounded
    before decoding: a stream too short for `shape` under these tables is refused at once.
    """
    channels, height, width = shape
    if channels != tables.num_channels or height < 1 or width < 1:
        raise InputError(f"symbols {shape} do not belong to tables of {tables.num_channels} channels")
    rans.open_stream(data)
    # A stream is at least 32 bits longer than its symbols' cost, to which each step adds at most 2^-15 of it.
    if 8 * len(data) - 32 < height * width * tables.min_bits_per_position * (1 - 2**-14):
        raise InputError(DAMAGED)
    return (coder or load_coder()).decode(data, height * width, tables).reshape(shape)


@functools.lru_cache(maxsize=1)
def load_coder() -> Coder:
    """The compiled coder if its file is installed and loads, else the Python one (with a warning). Found once."""
    try:
        ans = _load_ans()
    except ImportError as error:
        logger.warning(
            "%s: coding in plain Python, which is slower; to mend it: pip install --no-deps compressai", error
        )
        return PythonCoder()
    return CompiledCoder(ans)


def _load_ans() -> ModuleType:
    """CompressAI's extension module, without importing the package around it."""
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
    except ValueError:  # a module without a spec stands in its place
        return []
    return list(spec.submodule_search_locations or []) if spec else []


def _load_extension(path: Path) -> ModuleType:
    # pybind11 registers a module's classes once in a process: under any other name, a later `import compressai`
    # would load the file again and abort. Under its own name, and listed, that import takes this module (only the
    # package's attribute `ans` stays unset, which CompressAI does not use).
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return sys.modules.setdefault(_MODULE, module)


def _within_limit(symbols: npt.NDArray[np.int32]) -> bool:
    return bool(symbols.min() >= -SYMBOL_LIMIT and symbols.max() <= SYMBOL_LIMIT)


def _parts(channels: int, count: int) -> Iterator[tuple[slice, list[int]]]:
    """Groups of whole channels, about 16,000 symbols each, and for each symbol its channel within the group.

    Python lists of a whole large image would take gigabytes.
    """
    size = max(1, _SYMBOLS_PER_CALL // count)
    indexes = np.repeat(np.arange(min(size, channels)), count).tolist()
    for start in range(0, channels, size):
        stop = min(start + size, channels)
        yield slice(start, stop), indexes[: (stop - start) * count]
