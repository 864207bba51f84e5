"""The image files under a folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from relic.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Source(NamedTuple):
    """One listed file: its path relative to the listed folder (`/` between parts), and its size in bytes."""

    path: str
    size: int


def list_sources(folder: Path) -> list[Source]:
    """All files under `folder` with one of `ENDINGS` (upper or lower case), sorted by path.

    Folders behind symbolic links are not entered. A broken link, or something that is not a regular file, is listed
    with size 0 and rejected when it is read. Raises InputError for a folder that cannot be read, since skipping its
    images silently would lose data.
    """
    return sorted(_scan(os.fspath(folder), ""))


def _scan(folder: str, prefix: str) -> Iterator[Source]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _scan(entry.path, f"{prefix}{entry.name}/")
                elif _ending(entry.name) in ENDINGS and not _is_linked_folder(entry):
                    yield Source(prefix + entry.name, _size(entry))
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder ({error.strerror})") from error


def _ending(name: str) -> str:
    """The ending in lower case, `.jpg` for `A.JPG`; empty for a name such as `.jpg`."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending.lower() if stem else ""


def _is_linked_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, through a file, or nowhere
        return False


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
