"""The image files under a folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from relic.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Source(NamedTuple):
    """One listed file: path relative to the listed folder (`/` between parts), size in bytes."""

    path: str
    size: int


def list_sources(folder: Path) -> list[Source]:
    """All files under `folder` with one of `ENDINGS` (any case), sorted by path; symlinked folders are not entered.

    A dangling link, or something that is no regular file, is listed with size 0: reading it gives its rejection. Raises
    InputError for a folder that cannot be read, since leaving its images out in silence would lose data.
    """
    return sorted(_scan(os.fspath(folder), ""))


def _scan(folder: str, prefix: str) -> Iterator[Source]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _scan(entry.path, f"{prefix}{entry.name}/")
                elif _ending(entry.name) in ENDINGS and not entry.is_dir():
                    yield Source(prefix + entry.name, _size(entry))
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder ({error.strerror})") from error


def _ending(name: str) -> str:
    """`.jpg` of `A.JPG`; empty for a name that is nothing but an ending."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending.lower() if stem else ""


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
