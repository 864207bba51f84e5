"""Where the images of a split are: in a folder of this machine, or in a folder of an object store."""

import contextlib
import dataclasses
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from prep.reading import changed, check_bytes, deleted, read_source
from relic.errors import InputError
from relic.pictures.decoding import check_file_size
from relic.pictures.listing import Source, is_image_name, list_sources
from relic.storage.faults import MissingError
from relic.storage.objects import list_files, read_listed
from relic.storage.urls import in_folder, without_secrets

_IN_FLIGHT = 32
"""Requests of a worker at a time. At 30 ms each they bring 1,000 images per second, more than a core decodes."""
_AHEAD_BYTES = 64 << 20
"""Of images that were asked for and are not decoded yet, in a worker. One larger image is asked for alone."""
_CLOCK_NS = 5_000_000_000
"""What the clock of a store may be behind that of this machine."""


class Readable(Protocol):
    """Reads listed images."""

    def name_of(self, path: str) -> str:
        """The image as messages show it."""

    def read(self, source: Source) -> bytes:
        """All bytes. Raises Unreadable, InputError if the image changed since it was listed, and NetworkError."""


class Images(Readable, Protocol):
    """The images of a split. Can be pickled."""

    def exists(self) -> bool:
        """Whether the folder is there."""

    def sources(self) -> list[Source]:
        """All images, sorted by path. Raises InputError for a folder that cannot be read."""

    def changed_ns(self, source: Source) -> int:
        """When an image last changed, in nanoseconds since 1970; rather too late than too early."""

    def ahead(self, sources: Sequence[Source]) -> contextlib.AbstractContextManager[Readable]:
        """Inside the block, the images can be read, each once and in this order."""


def images_of(coco_dir: Path | str, name: str) -> Images:
    """The images in the folder `name` of `--coco_dir`: text is a URL."""
    return StoredImages(in_folder(coco_dir, name)) if isinstance(coco_dir, str) else LocalImages(coco_dir / name)


@dataclasses.dataclass(frozen=True)
class LocalImages:
    """A folder of this machine."""

    path: Path

    def exists(self) -> bool:
        return self.path.is_dir()

    def sources(self) -> list[Source]:
        return list_sources(self.path)

    def name_of(self, path: str) -> str:
        return os.fspath(self.path / path)

    def changed_ns(self, source: Source) -> int:
        """Of a link, when it or its target changed."""
        path = f"{os.fspath(self.path)}/{source.path}"
        try:
            status = os.lstat(path)
            newest = max(status.st_mtime_ns, status.st_ctime_ns)
            if stat.S_ISLNK(status.st_mode):
                status = os.stat(path)
                newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            return 0
        return newest

    def read(self, source: Source) -> bytes:
        return read_source(self.path / source.path, source.size)

    def ahead(self, sources: Sequence[Source]) -> contextlib.AbstractContextManager[Readable]:
        return contextlib.nullcontext(self)


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """A folder of an object store.

    The listing tells the version of each image. Only this version is packed, so an image that is replaced after the
    listing is never taken for the listed one.
    """

    url: str

    def exists(self) -> bool:
        with _naming_flag():
            return next(list_files(self.url), None) is not None

    def sources(self) -> list[Source]:
        with _naming_flag():
            return sorted(
                Source(found.name, found.size, found.etag, found.changed_ns)
                for found in list_files(self.url)
                if is_image_name(found.name.rpartition("/")[2])
            )

    def name_of(self, path: str) -> str:
        return f"{without_secrets(self.url)}/{path}"

    def changed_ns(self, source: Source) -> int:
        return source.changed_ns + _CLOCK_NS

    def read(self, source: Source) -> bytes:
        check_file_size(source.size)
        try:
            data = read_listed(self.url, source.path, source.version)
        except MissingError:
            raise deleted(self.name_of(source.path)) from None
        if data is None:
            raise changed(self.name_of(source.path))
        return check_bytes(data, source.size, self.name_of(source.path))

    @contextlib.contextmanager
    def ahead(self, sources: Sequence[Source]) -> Iterator[Readable]:
        pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="prep-read")
        try:
            yield _ReadAhead(self, sources, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _ReadAhead:
    """Asks for the next images of a list while the present one is decoded."""

    def __init__(self, store: StoredImages, sources: Sequence[Source], pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._pool = pool
        self._waiting = deque(sources)
        self._asked: deque[tuple[Source, Future[bytes]]] = deque()
        self._bytes = 0

    def name_of(self, path: str) -> str:
        return self._store.name_of(path)

    def read(self, source: Source) -> bytes:
        self._ask()
        asked, data = self._asked.popleft()
        assert asked == source
        self._bytes -= source.size
        return data.result()

    def _ask(self) -> None:
        while self._waiting and len(self._asked) < _IN_FLIGHT:
            if self._asked and self._bytes + self._waiting[0].size > _AHEAD_BYTES:
                return
            source = self._waiting.popleft()
            self._asked.append((source, self._pool.submit(self._store.read, source)))
            self._bytes += source.size


@contextlib.contextmanager
def _naming_flag() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"--coco_dir {error}") from None
