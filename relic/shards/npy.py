"""Raw crops as `.npy` files: a header, which may have any number of spaces, then height x width x 3 bytes."""

import functools
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096
"""Pixels begin at a multiple of it in a shard, so that they can be read past the page cache into the batch."""
_NUMPY_BYTES = 128
"""Of the header as numpy writes it."""
_PREFIX = b"\x93NUMPY\x01\0"
_LENGTH_BYTES = 2
_LONGEST_HEADER = 1 << 16


@functools.cache
def npy_header(height: int, width: int, length: int = _NUMPY_BYTES) -> bytes:
    """The `length` bytes before a C-ordered uint8 (height, width, 3) array: as numpy writes them, with other padding.

    Longer if the text does not fit into `length`.
    """
    buffer = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    header = buffer.getvalue()
    assert len(header) == _NUMPY_BYTES
    return header if length == _NUMPY_BYTES else _padded(header, length)


def aligned_header(payload: bytes, offset: int) -> tuple[bytes, int]:
    """A header for the `.npy` file `payload`, with which its array begins at a multiple of `PAGE_BYTES`.

    `offset`: where the file begins in the shard. Also returns the number of bytes of `payload` that it replaces: none
    if these are not an `.npy` file as relic writes it.
    """
    if not payload.startswith(_PREFIX):
        return b"", 0
    start = len(_PREFIX) + _LENGTH_BYTES
    found = start + int.from_bytes(payload[len(_PREFIX) : start], "little")
    return _padded(payload[:found], found + -(offset + found) % PAGE_BYTES), found


def _padded(header: bytes, length: int) -> bytes:
    start = len(_PREFIX) + _LENGTH_BYTES
    text = header[start:].rstrip().ljust(length - start - 1) + b"\n"
    return _PREFIX + len(text).to_bytes(_LENGTH_BYTES, "little") + text


class NpyHeader(NamedTuple):
    """What the header of an `.npy` file says."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[np.generic]
    data_offset: int

    @property
    def is_image(self) -> bool:
        """Whether the array is uint8 (height, width, 3), and not empty."""
        return self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[2] == 3 and 0 not in self.shape


def parse_npy_header(payload: bytes | memoryview) -> NpyHeader:
    """Read the header of any `.npy` file, with any padding. Raises ValueError for other bytes."""
    buffer = io.BytesIO(bytes(payload[:_LONGEST_HEADER]))
    try:
        version = np.lib.format.read_magic(buffer)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"npy version {version}")
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(buffer)
        else:
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(buffer)
    except ValueError:
        raise
    except Exception as error:  # numpy evaluates the header as Python text: damaged ones raise many types
        raise ValueError(f"not the header of an npy file ({type(error).__name__})") from error
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError("npy header with a side that is no whole number")
    return NpyHeader(shape, fortran_order, dtype, buffer.tell())


def read_npy(payload: memoryview) -> npt.NDArray[np.uint8]:
    """The uint8 (height, width, 3) array in an `.npy` payload, as a view. Raises ValueError for another array."""
    header = parse_npy_header(payload)
    if not header.is_image:
        raise ValueError(f"{header.dtype} {header.shape}, not a uint8 array of (height, width, 3)")
    pixels = np.frombuffer(payload, np.uint8, offset=header.data_offset)
    return pixels.reshape(header.shape, order="F" if header.fortran_order else "C")
