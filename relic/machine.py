"""The machine as this process sees it: cores, memory, and the build of Pillow. Does not import torch."""

import ctypes
import os
import sys

from relic.launch import read_ranks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TRIM_BYTES = 1 << 30
_MMAP_BYTES = 1 << 25  # glibc's own upper limit


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores() -> int:
    """The cores divided by the processes that torchrun started on this machine; at least 1."""
    return max(1, available_cores() // read_ranks().local_size)


def hide_gpus() -> None:
    """Let torch find no GPU, for a run on the CPU. Does nothing if torch is imported already.

    torch's optimizers start CUDA on the current GPU whatever their tensors lie on (checked in torch 2.14.1). That fails
    where another process has the GPU for itself.
    """
    if "torch" not in sys.modules:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pillow_name() -> str:
    """Name and version of the installed Pillow, for the start-up line."""
    import PIL

    if ".post" in PIL.__version__:
        return f"Pillow-SIMD {PIL.__version__}"
    return f"Pillow {PIL.__version__} (stock: pillow-simd resizes several times faster)"


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory instead of returning it to the kernel. Does nothing without glibc.

    Otherwise glibc requests memory of the size of an image's tensors from the kernel each time. The page faults take a
    third of the time of an evaluation and a fifth of the time of a calibration.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
