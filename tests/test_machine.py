"""The cores of a process: its own, its launcher's, and the quota of its container. Its memory, in the same way."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from relic import machine
from relic.launch import Ranks
from relic.machine import available_cores, available_memory, is_in_memory, share_of_cores


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, int]:
    """Process -> number of cores it is bound to; this process is 0. No quota, unless a test writes one."""
    cores = {0: 208, os.getppid(): 208}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores[process])))
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    return cores


def launch(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """torchrun with so many processes on this machine."""
    monkeypatch.setattr(machine, "read_ranks", lambda: Ranks(size=processes, local_size=processes))


@pytest.mark.parametrize(
    ("own", "launcher", "processes", "share"),
    [
        (208, 208, 8, 26),  # torchrun
        (26, 208, 8, 26),  # torchrun --numa-binding exclusive: each process has cores of its own
        (104, 208, 8, 26),  # --numa-binding node: four processes have the same cores
        (32, 32, 8, 4),  # in a container
        (208, 208, 1, 208),  # without torchrun
        (26, 208, 1, 26),
        (4, 4, 8, 1),
    ],
)
def test_cores_are_divided_among_processes_once(
    bound: dict[int, int], monkeypatch: pytest.MonkeyPatch, own: int, launcher: int, processes: int, share: int
) -> None:
    bound |= {0: own, os.getppid(): launcher}
    launch(monkeypatch, processes)
    assert share_of_cores() == share
    assert available_cores() == own


def test_a_launcher_that_has_ended_does_not_matter(bound: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def affinity(process: int) -> set[int]:
        if process:
            raise ProcessLookupError
        return set(range(16))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    launch(monkeypatch, 4)
    assert share_of_cores() == 4


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "1600000 100000"}, 16),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 208),
        ("0::/", {}, 208),
        ("0::/pod/job", {"pod/cpu.max": "400000 100000", "pod/job/cpu.max": "max 100000"}, 4),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "800000", "cpu/job/cpu.cfs_period_us": "100000"}, 8),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 208),
        ("3:memory:/job", {"cpu.max": "100000 100000"}, 208),
    ],
)
def test_the_quota_of_a_container_limits_the_cores(
    bound: dict[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    files: dict[str, str],
    cores: int,
) -> None:
    for name, text in {"proc/self/cgroup": line, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_cores() == cores
    launch(monkeypatch, 2)
    assert share_of_cores() == max(1, cores // 2)


GIB = 1 << 30
OLD_STAT = f"cache {9 * GIB}\ntotal_inactive_file {3 * GIB}\ntotal_active_file {GIB}"


@pytest.mark.parametrize(
    ("line", "files", "gib"),
    [
        ("0::/", {}, 20),
        ("0::/", {"memory.max": "max", "memory.current": "5", "memory.stat": ""}, 20),
        (
            "0::/pod/job",
            {
                "pod/memory.max": f"{16 * GIB}",
                "pod/memory.current": f"{12 * GIB}",
                "pod/memory.stat": f"anon {4 * GIB}\nfile {8 * GIB}\ninactive_file {5 * GIB}\nactive_file {2 * GIB}",
                "pod/job/memory.max": "max",
            },
            11,
        ),
        (
            "4:memory:/job",
            {
                "memory/job/memory.limit_in_bytes": f"{8 * GIB}",
                "memory/job/memory.usage_in_bytes": f"{6 * GIB}",
                "memory/job/memory.stat": OLD_STAT,
            },
            6,
        ),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, 20),
    ],
)
def test_memory_is_what_the_machine_and_the_container_have_left(
    bound: dict[int, int], tmp_path: Path, line: str, files: dict[str, str], gib: int
) -> None:
    """Pages of the cache count as free, except those of shared memory, which cannot be given up."""
    meminfo = f"MemTotal: {24 << 20} kB\nMemFree: 100 kB\nMemAvailable: {20 << 20} kB\n"
    paths = {"proc/self/cgroup": line, "proc/meminfo": meminfo}
    for name, text in {**paths, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_memory() == gib * GIB


def test_a_file_in_shared_memory_is_in_memory(
    bound: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    (tmp_path / "proc" / "self").mkdir(parents=True)
    for kind, expected in (("tmpfs", True), ("ext4", False)):
        mounts = [
            "21 1 0:99 / /other rw - tmpfs tmpfs rw",
            f"22 1 {os.major(device)}:{os.minor(device)} / /data rw,relatime shared:1 - {kind} /dev/x rw",
        ]
        (tmp_path / "proc" / "self" / "mountinfo").write_text("\n".join(mounts) + "\n")
        assert is_in_memory(tmp_path) is expected
    monkeypatch.setattr(machine, "_PROC", Path("/proc"))
    if Path("/dev/shm").is_dir():
        assert is_in_memory(Path("/dev/shm"))


_FAULTS = """
import resource, sys
from relic.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use_and_free():
    pieces = [bytearray(24 << 20) for _ in range(4)]
use_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(argument: str) -> int:
        return int(subprocess.run([sys.executable, "-c", _FAULTS, argument], capture_output=True, check=True).stdout)

    assert 4 * faults("keep") < faults("return")
