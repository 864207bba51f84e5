"""The machine as this process sees it: cores, memory, and the build of Pillow. Does not import torch."""

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path

from relic.launch import read_ranks

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TRIM_BYTES = 1 << 30
_MMAP_BYTES = 1 << 25  # glibc's own upper limit


def available_cores() -> int:
    """The number of cores that this process may use: those it is bound to, or the quota of its container."""
    return min(_bound_cores(0), _quota())


def share_of_cores() -> int:
    """The cores for each of the processes that torchrun started on this machine; at least 1.

    A launcher may bind each process to cores of its own. So the cores of the launcher are divided, not those of this
    process, which has at most those that it is bound to.
    """
    processes = read_ranks().local_size
    launcher = _bound_cores(os.getppid()) if processes > 1 else _bound_cores(0)
    return max(1, min(available_cores(), min(launcher, _quota()) // processes))


def _bound_cores(process: int) -> int:
    """Cores that a process may run on; 0: this process."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    try:
        return len(os.sched_getaffinity(process))
    except OSError:  # the process has ended, or is hidden
        return len(os.sched_getaffinity(0))


def _quota() -> int:
    """Whole cores that the control groups of this process may use together; at least 1, and many without a limit."""
    quotas = [_quota_of(group) for group in _groups("")] + [_old_quota_of(group) for group in _groups("cpu")]
    return max(1, int(min([float(1 << 20), *quotas])))


def available_memory() -> int:
    """Bytes that this process can still use: free ones, and those of the page cache, which the kernel gives up.

    The limits of its control groups count too.
    """
    free = float("inf")
    with contextlib.suppress(OSError, ValueError):
        lines = (_PROC / "meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    rooms = [_room_of(group) for group in _groups("")] + [_old_room_of(group) for group in _groups("memory")]
    return int(min([float(1 << 62), free, *rooms]))


def is_in_memory(path: Path) -> bool:
    """Whether the file lies in a file system that has no storage, such as /dev/shm. False for one that is missing."""
    with contextlib.suppress(OSError):
        status = path.stat()
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        for line in (_PROC / "self" / "mountinfo").read_text().splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == device:
                return source.split()[0] in ("tmpfs", "ramfs")
    return False


def _groups(controller: str) -> list[Path]:
    """The folders of the control groups of this process, and those above them.

    `controller`: of version 1; empty for the groups of version 2.
    """
    with contextlib.suppress(OSError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return _and_above(_CGROUPS / controller, path)
    return []


def _and_above(root: Path, path: str) -> list[Path]:
    """A group's folder and those above it, up to `root`. In a container, its own group is at `root`."""
    parts = Path(path.strip("/")).parts
    return [root.joinpath(*parts[:length]) for length in range(len(parts) + 1)]


def _quota_of(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # a ValueError for `max`
    return math.inf


def _old_quota_of(group: Path) -> float:
    """Of a control group of version 1."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf


def _room_of(group: Path) -> float:
    """Bytes below the limit of a control group, if its page cache were given up."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return limit - used + _page_cache(group, "")
    return math.inf


def _old_room_of(group: Path) -> float:
    """Of a control group of version 1."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage"))
        return limit - used + _page_cache(group, "total_")
    return math.inf


def _page_cache(group: Path, prefix: str) -> int:
    fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(fields.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))


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
    third of the time of an evaluation, a fifth of the time of a calibration and a twelfth of a training step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
