"""Random reads by `fio`: what the storage gives at a block size, with 32 reads in flight."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks._loader.measure import Pass
from relic.errors import InputError

IN_FLIGHT = 32
_ENGINES = ("io_uring", "libaio", "psync")
"""The first that works here is used. A container may forbid the first two."""
_SECONDS = 600.0


class Fio(NamedTuple):
    """The command, and the engine that works with these files."""

    command: str
    engine: str

    def read(self, files: Sequence[Path], block_bytes: int, reads: int) -> Pass:
        """Read `reads` blocks at random places of `files`, past the page cache."""
        each, depth, jobs = reads, IN_FLIGHT, 1
        if self.engine == "psync":  # one read at a time for each thread
            each, depth, jobs = max(1, reads // IN_FLIGHT), 1, IN_FLIGHT
        names = ":".join(os.fspath(file.absolute()).replace(":", "\\:") for file in files)
        flags = {
            "name": "reads", "filename": names, "rw": "randread", "bs": block_bytes, "direct": 1,
            "ioengine": self.engine, "iodepth": depth, "numjobs": jobs, "number_ios": each, "norandommap": 1,
            "file_service_type": "random", "randrepeat": 0, "output-format": "json",
        }  # fmt: skip
        arguments = [self.command, "--readonly", "--thread", "--group_reporting"]
        arguments += [f"--{name}={value}" for name, value in flags.items()]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise InputError(f"fio took more than {_SECONDS:g} s for {reads:,} reads; try fewer --crops") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            raise InputError(f"fio ({self.engine}) failed: {said[-1]}")
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        made = int(job["read"]["total_ios"])
        seconds = made / job["read"]["iops"]
        return Pass(made, seconds, cpu=seconds * (job["usr_cpu"] + job["sys_cpu"]) / 100 * jobs)


def find_fio(files: Sequence[Path], block_bytes: int) -> Fio | None:
    """fio with the first engine that reads these files past the page cache. None: not installed, or none does."""
    command = shutil.which("fio")
    for engine in _ENGINES if command else ():
        found = Fio(str(command), engine)
        try:
            found.read(files, block_bytes, IN_FLIGHT)
        except InputError:
            continue
        return found
    return None
