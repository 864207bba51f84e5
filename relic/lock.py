"""One lock between processes, for every file and folder that only one of them may work on."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from relic.errors import InputError

_POLL_SECONDS = 0.05
_FIRST_WORD_SECONDS = 1.0
_NEXT_WORD_SECONDS = 60.0

log = logging.getLogger(__name__)


@contextmanager
def lock(path: Path, *, wait_seconds: float = math.inf, create: bool = False, advice: str = "") -> Iterator[bool]:
    """Hold the lock of the file or folder `path` inside the block; yield False when another still holds it.

    The lock is on `path` itself. So a file in a read-only folder can be locked, and no lock file is left in a folder of
    shards. The kernel releases the lock when the process ends, however it ends. Threads exclude each other too.

    `wait_seconds`: how long to wait for another holder. 0 tries once. Waiting ends at the latest when the holder ends.
    Whoever waits for more than a second says so in the log, with the process that holds the lock.
    `create`: make an empty file `path` where there is none, and open it for writing. NFS locks only such files.
    `advice`: the way out for a file system that cannot lock (some NFS and FUSE). It becomes an InputError. Without
    advice the block runs unlocked: its work must then be correct when two processes do it.
    """
    # No link is followed to make a file, and a pipe is not waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if create else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o644)
    try:
        yield _acquire(descriptor, path, wait_seconds, advice)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait_seconds: float, advice: str) -> bool:
    began = time.monotonic()
    next_word = began + _FIRST_WORD_SECONDS
    try:
        while not lock_descriptor(descriptor, blocking=False):
            now = time.monotonic()
            if now >= began + wait_seconds:
                return False
            if now >= next_word:
                next_word = now + _NEXT_WORD_SECONDS
                log.info("%s: waiting for %s, which holds its lock", path, _holder(descriptor))
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        if advice:
            raise InputError(f"{path}: cannot be locked ({error.strerror}); {advice}") from error
    return True


def _holder(descriptor: int) -> str:
    """The process that holds the lock, as Linux tells it."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # "1: FLOCK ADVISORY WRITE 4711 08:01:123456 0 EOF"; "1: ->" begins a waiting one
            if words[1] == "FLOCK" and words[5] == place and int(words[4]) > 0:
                command = Path(f"/proc/{words[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {words[4]} ({command.strip()[:100]})"
    except (OSError, ValueError, IndexError):
        pass
    return "another process"
