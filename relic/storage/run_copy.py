"""A copy of a training run's files in an object store: written while the run goes on, and read by the next one.

The run works in its folder on this machine. A record there tells which versions of the store it has written or read, so
that a file of another machine is told from an own one.
"""

import json
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from relic.errors import InputError
from relic.files import write_json
from relic.lock import lock
from relic.storage.claim import Claim
from relic.storage.download import download
from relic.storage.faults import MissingError, NetworkError
from relic.storage.objects import delete_file, head, is_store, put_file
from relic.storage.stores import check_object_url
from relic.storage.urls import in_folder, without_secrets

RECORD = ".copied.json"
"""File in the folder of a run: the URL, and the version (ETag) of each file there."""
_LOCK = ".copied.lock"
_MOST_BYTES = 1 << 36
_RETRY_SECONDS = 30.0
"""Between two attempts to write a file whose upload failed."""

log = logging.getLogger(__name__)


def check_store(url: str, flag: str) -> None:
    """Raise InputError naming `flag` unless files can be written to `url`. Opens no connection."""
    if not is_store(url):
        raise InputError(f"{flag} {without_secrets(url)}: give a URL of s3, gs or az, such as s3://bucket/run")
    check_object_url(url, flag)


def holds(url: str, names: Sequence[str]) -> bool:
    """Whether the store has one of the files `names` in the folder `url`. Raises InputError and NetworkError."""
    return any(version_of(in_folder(url, name)) is not None for name in names)


def remove(url: str, names: Sequence[str]) -> None:
    """Remove the files `names` from the folder `url`."""
    for name in names:
        if version_of(in_folder(url, name)) is not None:
            delete_file(in_folder(url, name))


def fetch_run(url: str, folder: Path, main: str, others: Sequence[str]) -> None:
    """Bring the run at `url` into `folder` if its file `main` is not one that this folder has written or read.

    `others` are fetched first, so a folder that has the new `main` has the files that belong to it. Processes that do
    this for one folder do it in turn. Raises InputError, also where the folder holds another run, and NetworkError.
    """
    if version_of(in_folder(url, main)) in (None, read_versions(folder, url).get(main)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / _LOCK, wait_seconds=math.inf, create=True):
        versions = read_versions(folder, url)
        if version_of(in_folder(url, main)) == versions.get(main):
            return
        if main not in versions and (folder / main).exists():
            raise InputError(f"{without_secrets(url)}: holds another run than {folder}; choose another folder or URL")
        log.info("fetching the run at %s into %s", without_secrets(url), folder)
        for name in (*others, main):
            try:
                etag = download(in_folder(url, name), folder / name, lambda temporary: None, most_bytes=_MOST_BYTES)
            except MissingError:
                if name == main:
                    raise
                (folder / name).unlink(missing_ok=True)
                continue
            versions[name] = etag or ""
        write_versions(folder, url, versions)


class RunCopy:
    """Writes files of `folder` to `url`, in a thread. A file that changes again meanwhile is written once more.

    A context: its end waits for the files that are left. A failed upload ends no run, it is tried again. What kept a
    file from being written in the last attempt is raised at the end, unless another error ends the block. A store
    replaces a file whole, so the one before stays until the upload has returned. Two at once for one `url` are refused.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._claim = Claim(url, "--save_url")
        self._versions = read_versions(folder, url)
        self._waiting: list[str] = []
        """Names, each once, in the order in which they are written."""
        self._closing = False
        self._changed = threading.Condition()
        self._error: NetworkError | InputError | OSError | None = None
        self._thread = threading.Thread(target=self._run, name="relic-copy", daemon=True)
        self._thread.start()

    def put(self, *names: str) -> None:
        """Have these files of the folder written, in this order. Those that are not there are passed over."""
        with self._changed:
            for name in names:
                if name not in self._waiting:
                    self._waiting.append(name)
            self._changed.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._claim.__exit__()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                name, last = self._waiting.pop(0), self._closing
            try:
                self._write(name)
                self._error = None
            except (NetworkError, InputError, OSError) as error:
                self._error = error
                if last:
                    return
                log.warning("%s; trying again", error)
                self.put(name)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=_RETRY_SECONDS)

    def _write(self, name: str) -> None:
        path = self._folder / name
        if not path.is_file():
            return
        self._claim.check()
        self._versions[name] = put_file(path, in_folder(self._url, name)) or ""
        write_versions(self._folder, self._url, self._versions)


def version_of(url: str) -> str | None:
    """The version of a file in the store; None where there is none."""
    try:
        return head(url).etag or ""
    except MissingError:
        return None


def read_versions(folder: Path, url: str) -> dict[str, str]:
    """Name -> version of the files that `folder` has written to `url` or read from there."""
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["url"] == without_secrets(url):
            return {str(name): str(etag) for name, etag in record["versions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def write_versions(folder: Path, url: str, versions: dict[str, str]) -> None:
    write_json(folder / RECORD, {"url": without_secrets(url), "versions": versions})
