"""What this machine gives the process: cores, memory, and the build of Pillow. Imports no torch."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TRIM_BYTES = 1 << 30
_MMAP_BYTES = 1 << 25  # glibc's own upper limit


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores() -> int:
    """This process's share of them where torchrun started several on this machine; at least one."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def pillow_name() -> str:
    """Which Pillow runs, for the start-up line."""
    import PIL

    if ".post" in PIL.__version__:
        return f"Pillow-SIMD {PIL.__version__}"
    return f"Pillow {PIL.__version__} (stock: pillow-simd resizes several times faster)"


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
