"""Whether files are in the page cache, and dropping them from it. Needs no rights beyond reading the files."""

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget the pages of these files. Pages that another process has mapped stay."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not written yet are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(paths: Sequence[Path]) -> float | None:
    """The share of the files' pages that is in memory. None: the system does not tell.

    Reads no page, so it brings none in. The kernel tells only those who may write a file, and others that all of it is.
    """
    cached = pages = 0
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        if not hasattr(libc, "mincore") or not os.access(path, os.W_OK):
            return None
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                continue
            mapped = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
        found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        if libc.mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)):
            return None
        cached += int((found & 1).sum())
        pages += len(found)
    return cached / pages if pages else None
