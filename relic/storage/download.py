"""Download one URL into one file, whole or not at all, in a bounded number of attempts."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO

from relic.errors import InputError
from relic.files import open_temporary, remove_temporaries, sync_folder
from relic.storage import objects, pipes
from relic.storage.faults import (
    BusyError,
    FullDiskError,
    NetworkError,
    NotResumedError,
    PermanentError,
    TransferError,
    UnknownHostError,
)
from relic.storage.urls import is_pipe, without_secrets

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the third."""
BUSY_SECONDS = 10.0
"""The same where the server asks to come back later."""
PROGRESS_BYTES = 1 << 20
"""An attempt that brought as much, and can be resumed, is not counted."""
MOST_SHARD_BYTES = 1 << 37
DISK_RESERVE_BYTES = 64 << 20
"""Left free on the disk of the cache. Looked at again whenever an eighth of it has come."""

log = logging.getLogger(__name__)


class _Part:
    """What has come of `url`, in the file that becomes `path`."""

    def __init__(self, url: str, path: Path, file: IO[bytes], most_bytes: int) -> None:
        self.got = 0
        self.etag: str | None = None
        self._shown = without_secrets(url)
        self._path = path
        self._file = file
        self._most_bytes = most_bytes
        self._room_until = 0

    def write(self, chunk: bytes) -> None:
        if self.got + len(chunk) > self._most_bytes:
            raise PermanentError(f"{self._shown}: sends more than {self._most_bytes:,} bytes")
        if self.got + len(chunk) > self._room_until:
            self._find_room(len(chunk))
        try:
            self._file.write(chunk)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.got += len(chunk)

    def _find_room(self, needed_bytes: int) -> None:
        folder = self._path.parent
        if shutil.disk_usage(folder).free < DISK_RESERVE_BYTES + needed_bytes:
            way_out = "delete files, or choose another by --cache_dir or XDG_CACHE_HOME"
            raise FullDiskError(f"{self._shown}: the disk of {folder} is full; {way_out}")
        self._room_until = self.got + max(needed_bytes, DISK_RESERVE_BYTES // 8)

    def begin_anew(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.got, self.etag, self._room_until = 0, None, 0


def download(
    url: str,
    path: Path,
    check: Callable[[Path], None],
    attempts: int = ATTEMPTS,
    most_bytes: int = MOST_SHARD_BYTES,
    stop: threading.Event | None = None,
) -> str | None:
    """Download `url` to a temporary file, have `check` read that file, and rename it to `path`.

    `check` raises InputError for a file that is damaged. A failed transfer and a damaged file are tried again. A body
    that was cut is resumed at the byte, if the server tells a version (ETag) and sends parts. After the last attempt
    the first raises NetworkError, the second InputError. An unknown host is not tried again. Raises PermanentError at
    once where another attempt does not help: also for more than `most_bytes`, and before the disk is full. Messages
    name the URL. After an error no file is left. When `stop` is set, the download ends with a NetworkError. The caller
    makes sure that no other process downloads to `path`. Returns the version (ETag) that the server tells.
    """
    shown = without_secrets(url)
    stop = stop or threading.Event()
    remove_temporaries(path)
    descriptor, temporary = open_temporary(path)
    try:
        with open(descriptor, "wb") as file:
            part = _Part(url, path, file, most_bytes)
            attempt = 1
            while True:
                before = part.got
                try:
                    _receive(url, part, stop)
                    file.flush()
                    os.fsync(descriptor)
                    check(temporary)
                    break
                except (TransferError, InputError) as error:
                    if isinstance(error, PermanentError):
                        raise
                    if isinstance(error, UnknownHostError) or stop.is_set():
                        raise NetworkError(f"{shown}: could not be fetched: {error}") from error
                    is_cut = isinstance(error, TransferError)
                    if not (is_cut and part.etag):
                        part.begin_anew()
                    if part.got - before >= PROGRESS_BYTES:
                        attempt = 0
                    if attempt == attempts:
                        failed = f"{shown}: could not be fetched in {attempts} attempts: {error}"
                        if is_cut:
                            raise NetworkError(failed) from error
                        raise InputError(f"{failed}; write the file there again") from error
                    log.info("%s: %s; trying again", shown, error)
                    pause_seconds = BUSY_SECONDS if isinstance(error, BusyError) else PAUSE_SECONDS
                attempt += 1
                stop.wait(pause_seconds * (attempt - 1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return part.etag


def _receive(url: str, part: _Part, stop: threading.Event) -> None:
    """Bring what is missing of `url`."""
    if is_pipe(url):
        part.begin_anew()
        with closing(pipes.chunks_of(url, stop)) as chunks:
            for chunk in chunks:
                part.write(chunk)
    elif objects.is_object(url):
        try:
            objects.receive(url, part, stop)
        except NotResumedError:
            part.begin_anew()
            objects.receive(url, part, stop)
    else:
        raise PermanentError(
            f"{without_secrets(url)}: relic reads {', '.join(f'{scheme}://' for scheme in objects.SCHEMES)} and pipe:; "
            "give another program's output by pipe:COMMAND, for example pipe:curl -f URL"
        )
