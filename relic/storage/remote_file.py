"""A file behind a URL, such as a checkpoint: kept in the cache, and fetched again when the server has another version.

The cache is `$XDG_CACHE_HOME/relic/files` (`~/.cache/relic/files` without the variable).
"""

import json
import re
from pathlib import Path

from relic.cache import cache_folder, short_hash
from relic.errors import InputError
from relic.files import atomic_write, file_sha256
from relic.storage.cache import locked
from relic.storage.download import download
from relic.storage.objects import is_current, is_object
from relic.storage.urls import file_name, is_url, without_secrets

_MOST_BYTES = 1 << 36


def local_name(text: str) -> str:
    """What stands for the value of a flag on this machine: the file of the cache for a URL, else `text` itself.

    Opens nothing: `find_file` has put the file there.
    """
    return str(_place(text)) if is_url(text) else text


def find_file(text: str, *, flag: str, otherwise: str) -> None:
    """Check that the file of a flag is there. One behind a URL is fetched, unless the cache has the server's version.

    Raises InputError naming `flag`, with the way out `otherwise`, and NetworkError.
    """
    if is_url(text):
        _fetch(text, flag)
    elif not Path(text).is_file():
        raise InputError(f"{flag} {text}: no such file; {otherwise}")


def _fetch(url: str, flag: str) -> None:
    path = _place(url)
    if not is_object(url):
        raise InputError(f"{flag} {without_secrets(url)}: give a file, or a URL of http, https, s3, gs or az")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path.with_name(path.name + ".lock")):
            etag = _version_of(path)
            if etag is not None and is_current(url, etag):
                return
            _record(path).unlink(missing_ok=True)
            etag = download(url, path, lambda temporary: None, most_bytes=_MOST_BYTES)
            with atomic_write(_record(path), "w") as file:
                json.dump({"etag": etag, "sha256": file_sha256(path)}, file)
    except InputError as error:
        raise InputError(f"{flag} {error}") from None


def _place(url: str) -> Path:
    name = file_name(url)
    if not re.fullmatch(r"[\w-][\w.-]{,150}", name, re.ASCII):
        name = "file"
    return cache_folder("files", short_hash(url), name)


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _version_of(path: Path) -> str | None:
    """The version of a file in the cache that is as it was fetched; None for any other."""
    try:
        record = json.loads(_record(path).read_text())
        if record["sha256"] == file_sha256(path):
            return record["etag"] if isinstance(record["etag"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
