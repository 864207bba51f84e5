"""The image files under a folder."""

import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

from relic.errors import InputError

log = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Source(NamedTuple):
    """One listed file: its path relative to the listed folder (`/` between parts), and its size in bytes."""

    path: str
    size: int
    version: str | None = None
    """What an object store calls this version of the file. None for a file on a disk, and where it does not tell."""
    changed_ns: int = 0
    """When an object store was given the file, in nanoseconds since 1970. A disk is asked again when it matters."""


def list_sources(folder: Path) -> list[Source]:
    """All files under `folder` with one of `ENDINGS` (upper or lower case), sorted by path.

    Folders behind symbolic links are entered too, each folder once: a link to a folder that is listed anyway, or to one
    that contains the link, adds nothing, and the log says so. A broken link, or something that is not a regular file,
    is listed with size 0 and rejected when it is read. Raises InputError for a folder that cannot be read, since
    skipping its images silently would lose data.
    """
    found: list[Source] = []
    links: list[_Folder] = []
    entered: set[tuple[int, int]] = set()
    _scan(_Folder(os.fspath(folder), ""), found, links, entered)
    while links:  # after all folders that are no links: these keep their own paths
        link = links.pop(0)
        if _contains_link(link.path) or _identity(link.path) in entered:
            log.info("%s: this link leads to a folder that is listed under its own name", link.path)
            continue
        _scan(link, found, links, entered)
    return sorted(found)


def list_images(folder: Path) -> list[str]:
    """Paths of all images under `folder`, relative to it (`/` between parts), sorted. Linked folders are entered too.

    Raises InputError, naming `--images`, for a folder that is missing, unreadable or without an image.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder")
    try:
        names = [source.path for source in list_sources(folder)]
    except InputError as error:
        raise InputError(f"--images {error}") from error
    if not names:
        raise InputError(f"--images {folder}: no image in it ({', '.join(ENDINGS)})")
    return names


class _Folder(NamedTuple):
    path: str
    prefix: str
    """Its path relative to the listed folder, with a `/` at the end."""


def _scan(first: _Folder, found: list[Source], links: list[_Folder], entered: set[tuple[int, int]]) -> None:
    """Add the images under a folder to `found`, and the linked folders to `links`."""
    waiting = [first]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder.path)
            if identity in entered:  # two links, one to a folder inside that of the other
                continue
            entered.add(identity)
            with os.scandir(folder.path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    inside = _Folder(entry.path, f"{folder.prefix}{entry.name}/")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(inside)
                    elif _is_linked_folder(entry):
                        links.append(inside)
                    elif is_image_name(entry.name):
                        found.append(Source(folder.prefix + entry.name, _size(entry)))
        except OSError as error:
            raise InputError(f"{folder.path}: cannot list this folder ({error.strerror})") from error


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_linked_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, through a file, or to a name that is too long
        return False


def _contains_link(link: str) -> bool:
    """Whether a link leads to a folder above itself: it would list images again, or those of another split."""
    target = os.path.realpath(link)
    place = os.path.realpath(os.path.dirname(link))
    return os.path.commonpath((target, place)) == target


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed. The ending of `A.JPG` is `.jpg`; a name such as `.jpg` has none."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and dot + ending.lower() in ENDINGS


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
