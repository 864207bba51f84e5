"""The memory that a measurement may use, and uses: the limit of its control group, and its resident memory."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_SYSTEMD = Path("/run/systemd/system")
_RESET_PEAK = "5"
"""What the kernel reads from clear_refs as: forget the peak of the resident memory."""
_MIB = 1 << 20
_SECONDS = 20


def memory_limit() -> int | None:
    """Bytes that the control groups of this process allow, which bounds its page cache too. None: no limit."""
    found: list[int] = []
    with suppress(OSError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += _limits(_GROUPS, path, "memory.max")
            elif "memory" in controllers.split(","):
                found += _limits(_GROUPS / "memory", path, "memory.limit_in_bytes")
    return min((limit for limit in found if limit < _installed_bytes()), default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Of a group and those above it. In a container, its own group is at `root`."""
    parts = Path(path.strip("/")).parts
    found = []
    for length in range(len(parts) + 1):
        with suppress(OSError, ValueError):  # a ValueError for `max`
            found.append(int(root.joinpath(*parts[:length], name).read_text()))
    return found


def _installed_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limiting_command(limit_bytes: int) -> list[str] | None:
    """Words to put before a command so that systemd gives it at most this memory. None: systemd does not run here.

    Groups are systemd's own to make: a folder that another program makes in /sys/fs/cgroup may be removed by it.
    """
    command = shutil.which("systemd-run")
    if command is None or not _SYSTEMD.is_dir():
        return None
    owner = [] if os.geteuid() == 0 else ["--user"]
    limits = [word for name in (f"MemoryMax={limit_bytes}", "MemorySwapMax=0") for word in ("--property", name)]
    words = [command, *owner, "--scope", "--quiet", "--collect", *limits, "--"]
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run([*words, "true"], capture_output=True, check=False, timeout=_SECONDS).returncode == 0:
            return words
    return None


def resident_mib() -> float:
    """Resident memory of this process."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let `peak_mib` begin at the present memory. A kernel that cannot do it keeps the peak of the process."""
    with suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text(_RESET_PEAK)


def _status(name: str) -> float:
    lines = (_PROC / "self" / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / _MIB
