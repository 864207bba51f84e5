"""Freed memory is kept for what needs as much next. Imports no torch."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TRIM_BYTES = 1 << 30
_MMAP_BYTES = 1 << 25  # glibc's own upper limit


def keep_freed_memory() -> None:
    """Let glibc hold up to 1 GiB that was freed; without glibc, nothing.

    Tensors of an image come and go with sizes for which it asks the kernel anew every time, and the page faults take a
    third of an evaluation's time, and a fifth of a calibration's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
