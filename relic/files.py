"""Files that appear whole or not at all, and files that are read without waiting or filling the memory."""

import errno
import filecmp
import functools
import hashlib
import json
import math
import os
import re
import secrets
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from relic.errors import InputError
from relic.signals import handling, terminate

TEMPORARY_SUFFIX = ".tmp"
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""What `open_temporary` adds to the name of the final file."""
_ABANDONED_SECONDS = 3600.0
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems answer that give no file a second name (FAT, some FUSE and CIFS)."""
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
"""What file systems answer that cannot store a folder on request (CIFS, 9p, some FUSE)."""


def open_temporary(path: Path) -> tuple[int, Path]:
    """Make an empty temporary file beside `path`. Returns its descriptor, open for reading and writing, and its path.

    Its name is random, and no link of that name is followed: nobody can have the bytes written to another file. It has
    the permissions of an ordinary new file.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(temporary, flags, 0o666), temporary
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_temporaries(path: Path) -> None:
    """Remove what killed processes left of `path`. The caller makes sure that no other process writes `path`."""
    for found in path.parent.glob("*" + TEMPORARY_SUFFIX):
        if found.name.startswith(path.name) and TEMPORARY_NAME.fullmatch(found.name, len(path.name)):
            found.unlink(missing_ok=True)


@functools.cache
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of `open_temporary` that nobody has written to for an hour. Done once per process."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.search(TEMPORARY_NAME.pattern + "$", entry.name):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)


def publish_once(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, `path`. A file that is there is not replaced: it must have equal bytes.

    Processes of several hosts may do so at once for one path. Raises InputError if another one was first with other
    bytes. The temporary name is removed in any case.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno in _NO_LINKS and not path.exists():
            os.replace(temporary, path)  # the only way there; of two processes at this moment the last one wins
        elif error.errno not in {errno.EEXIST, *_NO_LINKS}:
            raise OSError(error.errno, error.strerror, str(path)) from error
        elif path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
        elif not filecmp.cmp(temporary, path, shallow=False):
            raise InputError(
                f"{path}: another process wrote it meanwhile, with other bytes; run the command again when it has ended"
            ) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, mode: str = "wb", *, once: bool = False) -> Iterator[IO[Any]]:
    """Yield a file that becomes `path` when the block ends without an error. Text is UTF-8.

    The bytes go to a temporary file of a random name in the same folder. So several writers of one path do not disturb
    each other. The bytes are flushed to the disk (fsync), and the file is renamed over `path`: a reader sees the old
    file or the new one, never a part. On an error the temporary file is removed and `path` is unchanged. What a killed
    process left in the folder is removed after an hour.

    `once`: a file that is there is not replaced, see `publish_once`.
    """
    _remove_abandoned(path.parent)
    written_bytes = 0
    descriptor, temporary = open_temporary(path)
    try:
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if once:
            publish_once(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            written_bytes = temporary.stat().st_size
        temporary.unlink(missing_ok=True)
        raise _naming_file(error, path, written_bytes) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, or in the system's folder for temporary files. It is removed after the block.

    SIGTERM ends the block and removes the folder too.
    """
    with handling((signal.SIGTERM,), terminate), tempfile.TemporaryDirectory(prefix="relic-", dir=parent) as folder:
        yield Path(folder)


@contextmanager
def append_text(path: Path) -> Iterator[IO[str]]:
    """Yield a file of UTF-8 text to append to. An error names the file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise _naming_file(error, path) from error


def _naming_file(error: OSError, path: Path, written_bytes: int = 0) -> OSError:
    """`error` with the file's name, which a failed write does not have. A full disk tells how much did not fit."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC and written_bytes:
        reason += f"; the file needs more than {written_bytes:,} bytes"
    return OSError(error.errno, reason, str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises InputError for a pipe, a socket or a device: reading it might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise InputError(f"{path}: not a regular file but a pipe or a device; remove it")
    return open(descriptor, "rb")


@contextmanager
def errors_named(path: Path | str) -> Iterator[None]:
    """Add the name of the file to an OSError inside the block. Python knows it only while a file is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """All bytes of a regular file. Raises InputError for one of more than `most_bytes`."""
    with errors_named(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise InputError(f"{path}: {size:,} bytes; such a file has at most {most_bytes:,}")
        return file.read()


def shown_path(path: Path) -> str:
    """The path as reports hold it: bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_folder(flag: str, folder: Path) -> None:
    """Raise InputError naming `flag` unless `folder` is, or can become, a folder to write into. Leaves no folder."""
    existing = nearest_existing(folder)
    refused = f"{flag} {folder}: {existing} is not a folder that can be written to"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(refused)
    try:  # permissions do not tell what a file system like /proc refuses
        os.rmdir(tempfile.mkdtemp(prefix=".relic-", dir=existing))
    except OSError as error:
        raise InputError(f"{refused} ({error.strerror})") from None


def nearest_existing(path: Path) -> Path:
    """`path` or the closest of its parents that exists."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut. Does nothing where the file system cannot do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def write_json(path: Path, value: object, *, once: bool = False) -> None:
    """Write `value` to `path` as indented JSON with a final newline, atomically. NaN and infinities become null.

    `once`: a file that is there is not replaced, see `publish_once`.
    """
    with atomic_write(path, "w", once=once) as file:
        json.dump(finite(value), file, indent=2)
        file.write("\n")


def finite(value: object) -> object:
    """Dicts, lists and plain values, with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
