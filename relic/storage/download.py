"""Download one URL into one file, whole or not at all. Uses webdataset's gopen and a bounded number of attempts."""

import logging
import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from relic.errors import InputError
from relic.files import open_temporary, remove_temporaries, sync_folder
from relic.storage.urls import without_secrets

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the third."""
STALL_SECONDS = 60.0
"""A transfer that brings less than `_LEAST_BYTES` in this time has failed, unless it ends."""
_LEAST_BYTES = 1024
MOST_SHARD_BYTES = 1 << 37
_DISK_RESERVE_BYTES = 64 << 20
"""Left free on the disk of the cache."""
_CHUNK_BYTES = 1 << 20
_HTTP_ERROR = 22
_CURL_EXIT_CODES = {
    6: "the host is not known",
    7: "the host does not answer",
    18: "the connection was cut",
    22: "the server refuses it (HTTP error: not there, or not allowed)",
    23: "the transfer was interrupted",
    28: "the host does not answer in time",
    52: "the server sent nothing",
    56: "the connection was cut",
}

log = logging.getLogger(__name__)


class PermanentError(InputError):
    """Another attempt does not help: the file does not exist, is not allowed, or is no shard."""


class DownloadError(ConnectionError):
    """The host, or the network, failed in all attempts.

    No InputError: the command line may be right. As an OSError it ends a command in one line, with exit code 1.
    """


class _TransferError(Exception):
    """A transfer failed. Another attempt may succeed."""


def download(
    url: str,
    path: Path,
    check: Callable[[Path], None],
    attempts: int = ATTEMPTS,
    most_bytes: int = MOST_SHARD_BYTES,
) -> None:
    """Download `url` to a temporary file, have `check` read that file, and rename it to `path`.

    `check` raises InputError for a file that is damaged. A failed transfer and a damaged file are tried again. After
    the last attempt the first raises DownloadError, the second InputError. Raises PermanentError at once where another
    attempt does not help: also for more than `most_bytes`, and before the disk is full. Messages name the URL. After an
    error no file is left. The caller makes sure that no other process downloads to `path`.
    """
    shown = without_secrets(url)
    remove_temporaries(path)
    for attempt in range(1, attempts + 1):
        descriptor, temporary = open_temporary(path)
        try:
            _stream(url, descriptor, path, most_bytes)
            check(temporary)
            os.replace(temporary, path)
            break
        except (_TransferError, InputError) as error:
            if isinstance(error, PermanentError):
                raise
            if attempt == attempts:
                failed = DownloadError if isinstance(error, _TransferError) else InputError
                raise failed(f"{shown}: could not be fetched in {attempts} attempts: {error}") from error
            log.info("%s: %s; trying again", shown, error)
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(PAUSE_SECONDS * attempt)
    sync_folder(path.parent)


def _stream(url: str, descriptor: int, path: Path, most_bytes: int) -> None:
    """Write the bytes of `url` to `descriptor`, and close it. Errors of writing name `path`."""
    got = 0
    with open(descriptor, "wb") as file:
        for chunk in _chunks(url):
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


def _chunks(url: str) -> Iterator[bytes]:
    from webdataset.gopen import gopen, gopen_schemes  # imports torch, so only when a file must be fetched

    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    try:
        stream: Any = gopen(url, "rb")
    except (OSError, ValueError, ImportError) as error:
        # No such scheme, or no such program. The error may hold the URL, and so a password.
        reason = str(error).replace(url, without_secrets(url))
        raise PermanentError(f"{without_secrets(url)}: cannot be opened ({reason})") from error
    process: subprocess.Popen[bytes] | None = getattr(stream, "proc", None)
    try:
        if process is None:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
            return
        yield from _chunks_of_process(stream.stream.fileno())
        _check_exit_code(url, process)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        with suppress(OSError):  # gopen's own error for the exit code that is checked above
            stream.close()


def _chunks_of_process(descriptor: int) -> Iterator[bytes]:
    """Read the pipe without gopen's buffer, which waits without end for a host that sends nothing."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    until, got = time.monotonic() + STALL_SECONDS, 0
    while True:
        if not poll.poll(STALL_SECONDS * 1000):
            raise _TransferError(f"no byte came for {STALL_SECONDS:.0f} s")
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return
        got += len(chunk)
        if got >= _LEAST_BYTES:
            until, got = time.monotonic() + STALL_SECONDS, 0
        elif time.monotonic() > until:
            raise _TransferError(f"only {got} bytes came in {STALL_SECONDS:.0f} s")
        yield chunk


def _check_exit_code(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Raise for a command that failed. gopen ignores some exit codes, and with GOPEN_VERBOSE all."""
    try:
        code = process.wait(STALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise _TransferError("the transfer has ended, but its command has not") from None
    if code == 0:
        return
    is_curl = not url.startswith(("pipe:", "gs://"))
    what = _CURL_EXIT_CODES.get(code, "") if is_curl else {127: "its command is not installed"}.get(code, "")
    what = what or f"its command ended with exit code {code}"
    if is_curl and code == _HTTP_ERROR:
        raise PermanentError(f"{without_secrets(url)}: {what}")
    raise _TransferError(what)
