"""Download one URL into one file, whole or not at all, in a bounded number of attempts."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from relic.errors import InputError
from relic.files import open_temporary, remove_temporaries, sync_folder
from relic.storage.transfer import BusyError, PermanentError, TransferError, UnknownHostError, chunks_of
from relic.storage.urls import without_secrets

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the third."""
BUSY_SECONDS = 10.0
"""The same where the server asks to come back later."""
MOST_SHARD_BYTES = 1 << 37
_DISK_RESERVE_BYTES = 64 << 20
"""Left free on the disk of the cache."""

log = logging.getLogger(__name__)


class DownloadError(ConnectionError):
    """The host, or the network, failed in all attempts.

    No InputError: the command line may be right. As an OSError it ends a command in one line, with exit code 1.
    """


def download(
    url: str,
    path: Path,
    check: Callable[[Path], None],
    attempts: int = ATTEMPTS,
    most_bytes: int = MOST_SHARD_BYTES,
    stop: threading.Event | None = None,
) -> None:
    """Download `url` to a temporary file, have `check` read that file, and rename it to `path`.

    `check` raises InputError for a file that is damaged. A failed transfer and a damaged file are tried again. After
    the last attempt the first raises DownloadError, the second InputError. An unknown host is not tried again. Raises
    PermanentError at once where another attempt does not help: also for more than `most_bytes`, and before the disk is
    full. Messages name the URL. After an error no file is left. When `stop` is set, the download ends with a
    DownloadError. The caller makes sure that no other process downloads to `path`.
    """
    shown = without_secrets(url)
    stop = stop or threading.Event()
    remove_temporaries(path)
    for attempt in range(1, attempts + 1):
        descriptor, temporary = open_temporary(path)
        try:
            _stream(url, descriptor, path, most_bytes, stop)
            check(temporary)
            os.replace(temporary, path)
            break
        except (TransferError, InputError) as error:
            if isinstance(error, PermanentError):
                raise
            if isinstance(error, UnknownHostError) or stop.is_set():
                raise DownloadError(f"{shown}: could not be fetched: {error}") from error
            if attempt == attempts:
                failed = DownloadError if isinstance(error, TransferError) else InputError
                raise failed(f"{shown}: could not be fetched in {attempts} attempts: {error}") from error
            log.info("%s: %s; trying again", shown, error)
            pause_seconds = BUSY_SECONDS if isinstance(error, BusyError) else PAUSE_SECONDS
        finally:
            temporary.unlink(missing_ok=True)
        stop.wait(pause_seconds * attempt)
    sync_folder(path.parent)


def _stream(url: str, descriptor: int, path: Path, most_bytes: int, stop: threading.Event) -> None:
    """Write the bytes of `url` to `descriptor`, and close it. Errors of writing name `path`."""
    got = 0
    with open(descriptor, "wb") as file, closing(chunks_of(url, stop)) as chunks:
        for chunk in chunks:
            got += len(chunk)
            if got > most_bytes:
                raise PermanentError(f"{without_secrets(url)}: sends more than {most_bytes:,} bytes")
            if shutil.disk_usage(path.parent).free < _DISK_RESERVE_BYTES + len(chunk):
                raise PermanentError(
                    f"{without_secrets(url)}: the disk of {path.parent} is full; delete files, or set XDG_CACHE_HOME"
                )
            try:
                file.write(chunk)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        file.flush()
        os.fsync(file.fileno())
