"""Code symbols to bytes and back: with CompressAI's compiled coder if its wheel is installed, else in plain Python.

Both write the same bytes. The compiled module is loaded from its file, so neither the `compressai` package nor torch,
which the package imports, is loaded. Symbols are int32 (M, h, w) of one image, coded channel by channel.
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
    """Codes checked symbols (M, n). `decode` returns the symbols given to `encode`, or raises InputError."""

    name: str

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes: ...

    def decode(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]: ...


class PythonCoder:
    """`relic.bitstream.rans`: needs no compiled module, and is 4 to 5 times slower than the compiled coder."""

    name = "python"

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes:
        return rans.encode(symbols, tables.rows, tables.offsets)

    def decode(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32]:
        return rans.decode(data, tables.rows, tables.offsets, count)


class CompiledCoder:
    """CompressAI's `ans`, called so that no data makes it access memory outside its buffers.

    It holds Python's lock (GIL) during the whole call, so threads do not run in parallel. To code on several cores, use
    processes.
    """

    name = _MODULE

    def __init__(self, ans: Any) -> None:
        self._ans = ans

    def encode(self, symbols: npt.NDArray[np.int32], tables: Tables) -> bytes:
        if symbols.size < 4:
            # The coder reserves one word per symbol but writes two more at the end: 1 or 2 symbols overrun its memory.
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
        # The coder does not report how far it read and does not check its final state. Equal bytes prove both.
        if not _within_limit(symbols) or self.encode(symbols, tables) != data:
            raise InputError(DAMAGED)
        return symbols

    def _decode_unescaped(self, data: bytes, count: int, tables: Tables) -> npt.NDArray[np.int32] | None:
        """The symbols, or None if an escape occurs.

        The coder does not stop at the end of a cut stream, and an escape can make it read any number of digits.
        Therefore each row gets one more interval, which no state can reach. The coder takes this one for the escape, so
        it never reads digits. Then a symbol reads at most 2 bytes. The cost of the symbols says how far the coder has
        read, and decoding stops before it leaves the padding. (The real cost of a step is within 2^-15 of -log2 p; so
        the padding includes len(data) // 1000.)
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
        """The symbols of a stream with escapes, decoded with as much padding as the worst stream can read.

        The coder reads a count of digits in base 15, with 4 bits per step. A count that starts inside the data can ask
        for 15 digits per 4 bits of data: 15 bytes per byte. A count that starts in the padding, whose words are 0,
        finds at most 8 steps of 15 in the state's 63 bits: 120 digits. With the steps and the escape these are 532
        bits, less than 68 bytes per symbol.
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

    Raises InputError for symbols beyond +-2^26, which `quantize` never returns, and for a shape that the tables lack.
    """
    if symbols.ndim != 3 or len(symbols) != tables.num_channels or not symbols.size:
        raise InputError(f"symbols {symbols.shape} do not belong to tables of {tables.num_channels} channels")
    if not _within_limit(symbols):
        raise InputError(f"symbols beyond {SYMBOL_LIMIT} cannot be coded: the encoder has diverged")
    return (coder or load_coder()).encode(symbols.reshape(tables.num_channels, -1), tables)


def decode_symbols(
    data: bytes, shape: tuple[int, int, int], tables: Tables, coder: Coder | None = None
) -> npt.NDArray[np.int32]:
    """Decode int32 symbols of `shape` (M, h, w). The inverse of `encode_symbols`.

    Raises InputError for any bytes that `encode_symbols` would not write for symbols of this shape. A stream that is
    too short for `shape` with these tables is refused before memory is allocated.
    """
    channels, height, width = shape
    if channels != tables.num_channels or height < 1 or width < 1:
        raise InputError(f"symbols {shape} do not belong to tables of {tables.num_channels} channels")
    rans.open_stream(data)
    # A stream is at least 32 bits longer than the cost of its symbols. The cost of a step is exact to 2^-15.
    if 8 * len(data) - 32 < height * width * tables.min_bits_per_position * (1 - 2**-14):
        raise InputError(DAMAGED)
    return (coder or load_coder()).decode(data, height * width, tables).reshape(shape)


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


def _within_limit(symbols: npt.NDArray[np.int32]) -> bool:
    return bool(symbols.min() >= -SYMBOL_LIMIT and symbols.max() <= SYMBOL_LIMIT)


def _parts(channels: int, count: int) -> Iterator[tuple[slice, list[int]]]:
    """Yield groups of whole channels, about 16,000 symbols each, and for each symbol its channel within the group.

    Groups limit the memory: Python lists of all symbols of a large image would take gigabytes.
    """
    size = max(1, _SYMBOLS_PER_CALL // count)
    indexes = np.repeat(np.arange(min(size, channels)), count).tolist()
    for start in range(0, channels, size):
        stop = min(start + size, channels)
        yield slice(start, stop), indexes[: (stop - start) * count]
