"""The `.relic` file: the symbols of one image and what is needed to read them.

All numbers are little-endian:

    offset  bytes
         0      4  magic "RELI"
         4      1  format version: 1, or 2 for symbols coded with contexts
         5      1  reserved, 0
         6      2  latent channels M
         8      4  image width in pixels
        12      4  image height in pixels
        16      4  latent width w = ceil(width / stride)
        20      4  latent height h = ceil(height / stride)
        24      8  first bytes of the SHA-256 of the coding tables (`Tables.stream_digest`)
        32      4  payload length in bytes, n
        36      n  payload: the symbols (M, h, w), see `runs` and `rans`
    36 + n      4  CRC-32 of everything before
"""

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relic.bitstream.coder import Coder, decode_symbols, encode_symbols
from relic.bitstream.tables import Tables
from relic.errors import InputError
from relic.files import atomic_write

MAGIC = b"RELI"
VERSION, CONTEXT_VERSION = 1, 2
MAX_PIXELS = 1 << 28
"""Largest number of pixels, with the sides rounded up to the stride: 16384 x 16384."""

_HEADER = struct.Struct("<4sBBHIIII8sI")
_CRC = struct.Struct("<I")
OVERHEAD_BYTES = _HEADER.size + _CRC.size
"""Size of a file minus its payload."""

_GET_AGAIN = "get the file again or encode again"


class StreamHeader(NamedTuple):
    """The header of a file. Reading it needs no tables."""

    version: int
    width: int
    height: int
    latent_shape: tuple[int, int, int]
    """(M, h, w)"""
    tables_prefix: str
    """First 16 hex digits of the tables' digest."""
    payload_bytes: int


class Stream(NamedTuple):
    """A decoded file: the image's size in pixels and its symbols, int32 (M, h, w)."""

    width: int
    height: int
    symbols: npt.NDArray[np.int32]


def latent_shape(width: int, height: int, tables: Tables) -> tuple[int, int, int]:
    """(M, h, w) for an image of width x height pixels. Raises InputError if it is empty or over MAX_PIXELS."""
    latent_height, latent_width = -(-height // tables.stride), -(-width // tables.stride)
    if width < 1 or height < 1 or latent_height * latent_width * tables.stride**2 > MAX_PIXELS:
        raise InputError(
            f"an image of {width} x {height} pixels cannot be coded: from 1 to {MAX_PIXELS} pixels, "
            f"with the sides rounded up to multiples of {tables.stride}; cut it into tiles"
        )
    return tables.num_channels, latent_height, latent_width


def pack(symbols: npt.NDArray[np.int32], width: int, height: int, tables: Tables, coder: Coder | None = None) -> bytes:
    """The content of a file for one image of width x height pixels with symbols int32 (M, h, w).

    Raises InputError for an image that is too large, and for symbols of another shape or beyond +-2^26.
    """
    expected = latent_shape(width, height, tables)
    if symbols.shape != expected:
        raise InputError(f"symbols {symbols.shape} do not belong to {width} x {height} pixels, which have {expected}")
    payload = encode_symbols(symbols, tables, coder)
    channels, latent_height, latent_width = expected
    prefix = bytes.fromhex(tables.stream_digest[:16])
    version = CONTEXT_VERSION if tables.contexts else VERSION
    body = (
        _HEADER.pack(MAGIC, version, 0, channels, width, height, latent_width, latent_height, prefix, len(payload))
        + payload
    )
    return body + _CRC.pack(zlib.crc32(body))


def unpack(data: bytes, tables: Tables, coder: Coder | None = None) -> Stream:
    """Read what `pack` wrote with the same tables. A stream of version 1 is read without their contexts.

    Everything is checked before symbols are decoded, and no memory is allocated that the payload cannot fill. Raises
    InputError for data of another format, version or length, damaged data, and data of other tables.
    """
    header = read_stream_header(data)
    if len(data) != header.payload_bytes + OVERHEAD_BYTES:
        raise InputError(_wrong_length(len(data), header))
    if zlib.crc32(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise InputError(f"damaged: the CRC does not match: {_GET_AGAIN}")
    if header.version == VERSION:
        tables = tables.plain()
    elif tables.contexts is None:
        raise InputError(
            "written with contexts, which these tables lack: decode with the export folder that encoded it"
        )
    if header.tables_prefix != tables.stream_digest[:16]:
        raise InputError(
            f"written with other tables ({header.tables_prefix}), these are {tables.stream_digest[:16]}: "
            "decode with the export folder that encoded it"
        )
    expected = latent_shape(header.width, header.height, tables)
    if header.latent_shape != expected:
        raise InputError(
            f"damaged: {header.width} x {header.height} pixels with latents {header.latent_shape}, "
            f"which should be {expected}: {_GET_AGAIN}"
        )
    symbols = decode_symbols(data[_HEADER.size : -_CRC.size], expected, tables, coder)
    return Stream(header.width, header.height, symbols)


def read_stream_header(data: bytes) -> StreamHeader:
    """Read the header from a file's first 36 bytes or more. Checks only the magic and the version."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise InputError("not a .relic file: encode the image with export/codec.py first")
    if len(data) < _HEADER.size:
        raise InputError(f"cut: {len(data)} bytes, the header alone has {_HEADER.size}: {_GET_AGAIN}")
    fields = _HEADER.unpack_from(data)
    _, version, reserved, channels, width, height, latent_width, latent_height, prefix, payload_bytes = fields
    if version not in (VERSION, CONTEXT_VERSION) or reserved:
        raise InputError(
            f".relic version {version}.{reserved}, this relic reads {VERSION}.0 and {CONTEXT_VERSION}.0: "
            "use the version of relic that wrote it"
        )
    return StreamHeader(version, width, height, (channels, latent_height, latent_width), prefix.hex(), payload_bytes)


def write_stream(path: Path, data: bytes) -> None:
    """Write what `pack` returned, atomically."""
    with atomic_write(path) as file:
        file.write(data)


def read_stream(path: Path, tables: Tables, coder: Coder | None = None) -> Stream:
    """`unpack` a file, after comparing its size with its header. Raises InputError naming a missing or bad file."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a FIFO would be waited for
        raise InputError(f"{path}: not a file")
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER.size)
            header = read_stream_header(start)
            size = os.fstat(file.fileno()).st_size
            if size != header.payload_bytes + OVERHEAD_BYTES:
                raise InputError(_wrong_length(size, header))
            return unpack(start + file.read(), tables, coder)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _wrong_length(size: int, header: StreamHeader) -> str:
    state = "cut" if size < header.payload_bytes + OVERHEAD_BYTES else "there are bytes after the stream"
    return f"{state}: {size} bytes, the header says {header.payload_bytes + OVERHEAD_BYTES}: {_GET_AGAIN}"
