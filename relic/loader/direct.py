"""Reads past the page cache (O_DIRECT): what a file system asks of them."""

import ctypes
import mmap
import os
import struct
from pathlib import Path

from relic.shards.npy import PAGE_BYTES

_STATX_DIOALIGN, _AT_EMPTY_PATH = 0x2000, 0x1000  # of linux/stat.h and linux/fcntl.h
_STATX_BYTES, _DIO_OFFSET = 256, 152
_LEAST_UNIT = 512
DIRECT = os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_DIRECT", 0)
"""Flags with which a file is opened for such reads."""


def direct_unit(path: Path) -> int | None:
    """The unit of reads of `path` past the page cache; None where the file system refuses them.

    Memory, offset and length of each such read must be multiples of the unit, in bytes.
    """
    try:
        descriptor = os.open(path, DIRECT)
    except OSError:
        return None
    try:
        os.preadv(descriptor, (mmap.mmap(-1, PAGE_BYTES),), 0)  # some refuse only when they read
        return _told_unit(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _told_unit(descriptor: int) -> int:
    """The unit that the kernel tells (Linux 6.1 and later, some file systems); otherwise a page."""
    try:
        statx = ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return PAGE_BYTES
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found) != 0:
        return PAGE_BYTES
    (mask,) = struct.unpack_from("=I", found)
    units = struct.unpack_from("=II", found, _DIO_OFFSET)
    return min(max(*units, _LEAST_UNIT), PAGE_BYTES) if mask & _STATX_DIOALIGN and all(units) else PAGE_BYTES
