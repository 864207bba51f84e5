"""Which processes pack into a folder of shards.

Each process has one file per split in the folder, `train.0123456789abcdef.owner`, until its shards of that split are
packed. It holds a lock on the file, which tells for certain whether a process of the same machine still runs. Many
shared file systems do not pass locks on to other hosts. So the process also touches its files every 5 seconds: one of
another host counts as dead when its file was watched for a minute and not touched. No clocks are compared.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from prep.part import PackingShare
from relic.errors import InputError
from relic.files import read_bounded
from relic.lock import lock

_NAME = re.compile(r"(?P<split>[a-z]+)\.[0-9a-f]{16}\.owner")
_MOST_BYTES = 1 << 16
_LOCK_SECONDS = 600.0
"""The lock of the folder is held while a run begins, and while it writes a manifest."""
_BEAT_SECONDS = 5.0
_DEAD_SECONDS = 60.0
_POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Process:
    """What an owner file says."""

    host: str
    pid: int
    machine: str
    """Equal for all processes that share a kernel, also for those in other containers."""
    part: PackingShare

    def __str__(self) -> str:
        part = f", part {self.part}" if self.part.of > 1 else ""
        return f"process {self.pid} of {self.host}{part}"


class Owner:
    """This process as an owner of a folder. Made by `owning`."""

    def __init__(self, folder: Path, part: PackingShare) -> None:
        self.folder = folder
        self.part = part
        self._process = _Process(socket.gethostname(), os.getpid(), _machine(), part)
        self._files: dict[str, tuple[Path, contextlib.ExitStack]] = {}
        self._locks_work = False
        self._ended = threading.Event()

    def join(self, splits: Sequence[str], begin: Callable[[bool], None]) -> None:
        """Become an owner; call `begin(shared)`: whether others pack here. Raises InputError if one is in the way."""
        with _folder_lock(self.folder):
            for split in splits:  # first, so that two that begin at once see each other where no folder can be locked
                self._own(split)
            threading.Thread(target=self._beat, daemon=True).start()
            found = self._others()
            in_the_way = [path for path, process in found.items() if not process.part.goes_with(self.part)]
            if alive := self._living(in_the_way):
                way_out = "give each process an I of its own" if self.part.of > 1 else "wait until it has ended"
                raise InputError(f"--out_dir {self.folder}: {alive} is packing into it; {way_out}")
            begin(len(found) > len(in_the_way))

    def _own(self, split: str) -> None:
        path = self.folder / f"{split}.{secrets.token_hex(8)}.owner"
        held = contextlib.ExitStack()
        self._files[split] = path, held
        held.enter_context(lock(path, wait_seconds=0, create=True))
        path.write_text(json.dumps(dataclasses.asdict(self._process)))
        with lock(path, wait_seconds=0, create=True) as again:
            self._locks_work = not again

    @contextlib.contextmanager
    def leaving(self, split: str) -> Iterator[Callable[[], bool]]:
        """Hold the folder's lock, and own `split` no longer. Yields a function: whether another process packs it."""
        with _folder_lock(self.folder):
            self._release(split)
            yield lambda: self._living(path for path in self._others() if path.name.startswith(f"{split}.")) is not None

    def leave(self) -> None:
        """Own nothing any longer."""
        self._ended.set()
        for split in list(self._files):
            self._release(split)

    def _release(self, split: str) -> None:
        path, held = self._files.pop(split)
        path.unlink(missing_ok=True)
        held.close()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            for path, _ in list(self._files.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _others(self) -> dict[Path, _Process]:
        """The files of other processes, living or not."""
        own = [path for path, _ in self._files.values()]
        found = {}
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path not in own:
                with contextlib.suppress(FileNotFoundError):
                    found[path] = _read(path)
        return found

    def _living(self, paths: Iterable[Path]) -> _Process | None:
        """One of the processes of these files that lives. If there is none, the files are removed."""
        watched = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                process = _read(path)
                with lock(path, wait_seconds=0, create=True) as free:
                    if not free:
                        return process
                if not (self._locks_work and process.machine == self._process.machine):
                    watched[path] = process, _stamp(path)
                    continue
            path.unlink(missing_ok=True)
        return _first_touched(watched)


@contextlib.contextmanager
def owning(folder: Path, part: PackingShare, splits: Sequence[str], begin: Callable[[bool], None]) -> Iterator[Owner]:
    """Own the folder inside the block, see `Owner.join`. A run that is refused leaves no file there."""
    owner = Owner(folder, part)
    try:
        owner.join(splits, begin)
        yield owner
    finally:
        owner.leave()


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder itself: no lock file is left there. Where that cannot be done (NFS), the block runs unlocked."""
    with lock(folder, wait_seconds=_LOCK_SECONDS) as held:
        if not held:
            raise InputError(f"--out_dir {folder}: another make_shards.py holds its lock for {_LOCK_SECONDS:.0f} s")
        yield


def _read(path: Path) -> _Process:
    """Raises FileNotFoundError for a process that has left."""
    try:
        value = json.loads(read_bounded(path, _MOST_BYTES))
        return _Process(value["host"], value["pid"], value["machine"], PackingShare(*value["part"]))
    except (ValueError, KeyError, TypeError):  # damaged, or another version: nothing goes with it
        return _Process("unknown", 0, "", PackingShare(0, 0))


def _stamp(path: Path) -> int:
    """When the file was touched last. It is opened: some file systems ask the server only then."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _first_touched(watched: dict[Path, tuple[_Process, int]]) -> _Process | None:
    """Watch files of other hosts until one is touched. Files that are not touched in a minute are removed."""
    if watched:
        names = ", ".join(str(process) for process, _ in watched.values())
        log.info("waiting up to %.0f seconds for a sign of %s", _DEAD_SECONDS, names)
    deadline = time.monotonic() + _DEAD_SECONDS
    while watched and time.monotonic() < deadline:
        for path, (process, stamp) in list(watched.items()):
            try:
                if _stamp(path) != stamp:
                    return process
            except FileNotFoundError:
                del watched[path]
        time.sleep(_POLL_SECONDS)
    for path in watched:
        path.unlink(missing_ok=True)
    return None


def _machine() -> str:
    """The running kernel; on systems that do not name it, the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
