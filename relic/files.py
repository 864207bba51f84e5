"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from relic.errors import InputError

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_write(path: Path, mode: str = "wb", tag: str = "") -> Iterator[IO[Any]]:
    """Yield a file that becomes `path` when the block ends without an error.

    The bytes go to `path` + `tag` + ".tmp". Concurrent writers of one path must pass different tags. The bytes are
    flushed to the disk (fsync), and the file is renamed over `path`: a reader sees the old file or the new one, never a
    part. On an error the temporary file is removed and `path` is unchanged.
    """
    temporary = path.with_name(path.name + tag + TEMPORARY_SUFFIX)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_folder(flag: str, folder: Path) -> None:
    """Raise InputError naming `flag` unless `folder` is, or can become, a folder to write into. Makes no folder."""
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: {existing} is not a folder that can be written to")


def nearest_existing(path: Path) -> Path:
    """`path` or the closest of its parents that exists."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON with a final newline, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
