"""The entropy model as numbers: CDF tables, medians, and context tables.

Shapes: y (..., M, h, w) latents, symbols (..., M, h, w) int32. Each of the M channels has its own table.
"""

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from relic.bitstream.contexts import Contexts
from relic.bitstream.rans import CDF_END, OFFSET_LIMIT, SYMBOL_LIMIT
from relic.bitstream.rows import Ints, Rows
from relic.errors import InputError, naming
from relic.files import atomic_write

FORMAT_VERSION = 1
CONTEXT_VERSION = 2
"""Version of a file with context tables."""
MAX_CHANNELS = (1 << 16) - 1
MAX_STRIDE = 1 << 10
MAX_ENTRIES = 1 << 23
"""Largest M x L. CompressAI's largest codec has less than 200,000."""
_MAX_FILE_BYTES = 1 << 27
_MAX_GROUPS = 8
_CONTEXT_PREFIX = "context_"

_EXPORT_AGAIN = "export the model again"


@dataclass(frozen=True, eq=False)
class Tables:
    """The coding tables of a factorized entropy model. Immutable. Equal if every used number is equal.

    The arrays are copied and converted. Entries after a row's length are unused and set to 0. Raises InputError for
    tables that cannot code: with these, CompressAI's coder would divide by zero or read outside its memory.
    """

    cdf: npt.NDArray[np.int32]
    """(M, L): each row increases strictly from 0 to 65536 over its `cdf_length` entries. Its last interval is the
    escape."""
    cdf_length: npt.NDArray[np.int32]
    """(M,): number of used entries per row, 3 to L, for one or more values and the escape."""
    offset: npt.NDArray[np.int32]
    """(M,): the symbol of the first interval of each row."""
    medians: npt.NDArray[np.float32]
    """(M,): symbols are round(y - median)."""
    stride: int
    """Image pixels per latent position, in each direction."""
    contexts: Contexts | None = None
    """Rows chosen by decoded neighbours. Streams then have version 2, else 1."""

    def __post_init__(self) -> None:
        cdf, length, offset = (_integers(getattr(self, name), name) for name in ("cdf", "cdf_length", "offset"))
        medians = np.array(self.medians)
        if medians.dtype.kind != "f":
            raise InputError(f"tables: medians ({medians.dtype}) does not hold floats: {_EXPORT_AGAIN}")
        with np.errstate(over="ignore"):  # a float64 too large for float32 is refused below
            medians = medians.astype(np.float32)
        if cdf.ndim != 2 or not (length.shape == offset.shape == medians.shape == cdf.shape[:1]):
            shapes = ", ".join(str(array.shape) for array in (cdf, length, offset, medians))
            raise InputError(f"tables: shapes {shapes} instead of (M, L), (M,), (M,), (M,): {_EXPORT_AGAIN}")
        if not 1 <= len(cdf) <= MAX_CHANNELS:
            raise InputError(f"tables: {len(cdf)} channels; 1 to {MAX_CHANNELS} can be coded: {_EXPORT_AGAIN}")
        if not 1 <= self.stride <= MAX_STRIDE:
            raise InputError(f"tables: stride {self.stride}; 1 to {MAX_STRIDE} can be coded: {_EXPORT_AGAIN}")
        if cdf.size > MAX_ENTRIES:
            raise InputError(f"tables: {cdf.size:,} entries; up to {MAX_ENTRIES:,} can be coded: {_EXPORT_AGAIN}")
        _refuse("a CDF length outside 3 to the table's width", (length < 3) | (length > cdf.shape[1]))
        used = np.arange(cdf.shape[1]) < length[:, None]
        rises = (np.diff(cdf.astype(np.int64), axis=1) > 0) | ~used[:, 1:]
        _refuse("a CDF that does not rise at every symbol", ~rises.all(axis=1))
        last = np.take_along_axis(cdf, length[:, None] - 1, axis=1)[:, 0]
        _refuse(f"a CDF that does not run from 0 to {CDF_END}", (cdf[:, 0] != 0) | (last != CDF_END))
        _refuse(f"an offset beyond {OFFSET_LIMIT}", (offset > OFFSET_LIMIT) | (offset < -OFFSET_LIMIT))
        _refuse("a median that is not a finite number", ~np.isfinite(medians))
        cdf = np.where(used, cdf, 0)[:, : length.max()].astype(np.int32)
        for name, array in (("cdf", cdf), ("cdf_length", length), ("offset", offset), ("medians", medians)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "stride", int(self.stride))
        if self.contexts is not None and self.contexts.num_channels != len(cdf):
            raise InputError(
                f"tables: {len(cdf)} channels with contexts for {self.contexts.num_channels}: {_EXPORT_AGAIN}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tables) and self.stream_digest == other.stream_digest

    def __hash__(self) -> int:
        return hash(self.stream_digest)

    def plain(self) -> "Tables":
        """These tables without contexts: those of streams of version 1."""
        return self if self.contexts is None else replace(self, contexts=None)

    @property
    def num_channels(self) -> int:
        return len(self.cdf)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every number but the contexts: name, shape and little-endian values of each array, then the
        stride."""
        sha = hashlib.sha256()
        for name, array, dtype in (
            ("cdf", self.cdf, "<i4"),
            ("cdf_length", self.cdf_length, "<i4"),
            ("offset", self.offset, "<i4"),
            ("medians", self.medians, "<f4"),
        ):
            sha.update(f"{name} {dtype} {'x'.join(map(str, array.shape))}\n".encode())
            sha.update(array.astype(dtype).tobytes())
        sha.update(f"stride {self.stride}\n".encode())
        return sha.hexdigest()

    @cached_property
    def stream_digest(self) -> str:
        """SHA-256 (hex) of every number. Without contexts, it is `digest`."""
        if self.contexts is None:
            return self.digest
        return hashlib.sha256(f"{self.digest} {self.contexts.digest}".encode()).hexdigest()

    @cached_property
    def rows(self) -> list[list[int]]:
        """The CDF of each channel without unused entries. Cached, because making it costs as much as coding a crop."""
        return [row[:length] for row, length in zip(self.cdf.tolist(), self.cdf_length.tolist(), strict=True)]

    @cached_property
    def offsets(self) -> list[int]:
        result: list[int] = self.offset.tolist()
        return result

    @cached_property
    def least_bits(self) -> npt.NDArray[np.float64]:
        """(M,): the smallest cost of a symbol coded with its channel's own row."""
        return np.array([Rows([row], [0]).least_bits for row in self.rows])

    def row_groups(self, size: int) -> list[tuple[Ints, Rows]]:
        """The channels without contexts in groups of up to `size`, and their rows. The last few results are cached."""
        if size not in self._groups:
            channels: Ints = np.arange(self.num_channels) if self.contexts is None else self.contexts.plain
            parts = [channels[start : start + size] for start in range(0, len(channels), size)]
            if len(self._groups) == _MAX_GROUPS:
                self._groups.clear()
            self._groups[size] = [
                (part, Rows([self.rows[one] for one in part], [self.offsets[one] for one in part])) for part in parts
            ]
        return self._groups[size]

    @cached_property
    def _groups(self) -> dict[int, list[tuple[Ints, Rows]]]:
        return {}

    def save(self, path: Path) -> None:
        """Write an .npz of the arrays, `stride` and `format_version`, atomically. Equal tables give equal bytes."""
        contexts = self.contexts.stored() if self.contexts else {}
        with atomic_write(path) as file:
            np.savez(
                file,
                cdf=self.cdf,
                cdf_length=self.cdf_length,
                offset=self.offset,
                medians=self.medians,
                stride=self.stride,
                format_version=CONTEXT_VERSION if self.contexts else FORMAT_VERSION,
                **{f"{_CONTEXT_PREFIX}{name}": array for name, array in contexts.items()},
            )

    @classmethod
    def load(cls, path: Path) -> "Tables":
        """Read what `save` wrote. Raises InputError for a file that is missing, damaged or of another version.

        The size of an array is known before memory is taken for it.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the folder that export wrote")
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError(f"over {_MAX_FILE_BYTES:,} bytes")
            with zipfile.ZipFile(path) as archive:
                version, stride = (_read_number(archive, name) for name in ("format_version", "stride"))
                fields = {name: _read_array(archive, name) for name in ("cdf", "cdf_length", "offset", "medians")}
                names = Contexts.STORED if version == CONTEXT_VERSION else ()
                contexts = {name: _read_array(archive, f"{_CONTEXT_PREFIX}{name}") for name in names}
        except Exception as error:  # for a broken file, numpy and zipfile raise many types, none documented
            raise InputError(f"{path}: not a readable table file ({error}): {_EXPORT_AGAIN}") from error
        if version not in (FORMAT_VERSION, CONTEXT_VERSION):
            known = f"{FORMAT_VERSION} and {CONTEXT_VERSION}"
            raise InputError(f"{path}: table format {version}, this relic reads {known}: {_EXPORT_AGAIN}")
        with naming(path):
            return cls(**fields, stride=stride, contexts=Contexts(**contexts) if contexts else None)


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """An array of an .npz. Raises an Exception of any type if it is missing, damaged or larger than tables can be."""
    most = 8 * MAX_ENTRIES
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > most:
        raise ValueError(f"{name} unpacks to {info.file_size:,} bytes")
    file = io.BytesIO(archive.read(info))
    major = npy.read_magic(file)
    if major not in ((1, 0), (2, 0)):
        raise ValueError(f"{name}: npy version {major}")
    shape, _, dtype = npy.read_array_header_1_0(file) if major == (1, 0) else npy.read_array_header_2_0(file)
    if dtype.kind not in "iuf" or min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name}: {dtype} {shape} in {info.file_size:,} bytes")
    file.seek(0)
    array: npt.NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def _read_number(archive: zipfile.ZipFile, name: str) -> int:
    array = _read_array(archive, name)
    if array.shape or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is no whole number")
    return int(array)


def quantize(y: npt.NDArray[np.float32], tables: Tables) -> npt.NDArray[np.int32]:
    """Round y - median half to even, in float32, as CompressAI's `EntropyBottleneck.quantize` does.

    Raises InputError if y is not finite or beyond +-2^26: CompressAI would silently store another number.
    """
    rounded = np.rint(y.astype(np.float32, copy=False) - tables.medians[:, None, None])
    if not (np.abs(rounded) <= SYMBOL_LIMIT).all():
        raise InputError(
            f"the encoder's output is not finite or beyond {SYMBOL_LIMIT}, which cannot be coded: "
            "use a checkpoint from before the training diverged"
        )
    return rounded.astype(np.int32)


def dequantize(symbols: npt.NDArray[np.int32], tables: Tables) -> npt.NDArray[np.float32]:
    """y_hat = symbols + medians, float32: the decoder's input."""
    return symbols.astype(np.float32) + tables.medians[:, None, None]


def _integers(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int32]:
    array = np.asarray(values)
    info = np.iinfo(np.int32)
    if array.dtype.kind not in "iu" or (array.size and not info.min <= array.min() <= array.max() <= info.max):
        raise InputError(f"tables: {name} ({array.dtype}) does not hold 32-bit integers: {_EXPORT_AGAIN}")
    return array.astype(np.int32)


def _refuse(fault: str, at_fault: npt.NDArray[np.bool_]) -> None:
    if at_fault.any():
        raise InputError(f"tables: channel {int(at_fault.argmax())} has {fault}: {_EXPORT_AGAIN}")
