"""The folder for files that relic can make again: fetched shards, indexes, results of checks."""

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from relic.errors import InputError


def cache_folder(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/relic/PARTS`; without the variable `~/.cache/relic/PARTS`. Does not make the folder.

    A user without a home folder (a bare user id in a container) gets a folder of his own in the folder for temporary
    files. Raises InputError if that belongs to someone else.
    """
    try:
        folder = platformdirs.user_cache_path("relic")
    except RuntimeError:
        folder = Path("~")
    return (_without_home() if folder.parts[:1] == ("~",) else folder).joinpath(*parts)


def _without_home() -> Path:
    folder = Path(tempfile.gettempdir(), f"relic-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(f"{folder}: others can write to it; set XDG_CACHE_HOME to a folder for the cache")
    return folder


def short_hash(text: str) -> str:
    """16 hexadecimal digits that stand for `text` in a file name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
