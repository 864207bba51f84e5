"""One lock between processes, for every file and folder that only one of them may work on."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from relic.errors import InputError

_POLL_SECONDS = 0.05


@contextmanager
def lock(path: Path, *, wait_seconds: float = math.inf, create: bool = False, advice: str = "") -> Iterator[bool]:
    """Hold the lock of the file or folder `path` inside the block; yield False when another still holds it.

    The lock is on `path` itself. So a file in a read-only folder can be locked, and no lock file is left in a folder of
    shards. The kernel releases the lock when the process ends, however it ends. Threads exclude each other too.

    `wait_seconds`: how long to wait for another holder. 0 tries once. Waiting ends at the latest when the holder ends.
    `create`: make an empty file `path` where there is none, and open it for writing. NFS locks only such files.
    `advice`: the way out for a file system that cannot lock (some NFS and FUSE). It becomes an InputError. Without
    advice the block runs unlocked: its work must then be correct when two processes do it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o644)
    try:
        yield _acquire(descriptor, path, wait_seconds, advice)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait_seconds: float, advice: str) -> bool:
    deadline = time.monotonic() + wait_seconds
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        if advice:
            raise InputError(f"{path}: cannot be locked ({error.strerror}); {advice}") from error
    return True
