"""Files of web servers and of object stores: read whole or in part, written, listed. Uses obstore.

obstore has threads of its own, which a forked process lacks: a fork of a process that has used this module waits for
ever. relic starts threads, and processes by spawn only. Whoever forks must do so before the first call here.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, NotSupportedError, PreconditionError
from obstore.store import GCSStore

from relic.storage import stores
from relic.storage.faults import (
    BusyError,
    NetworkError,
    NotResumedError,
    PermanentError,
    TransferError,
    fault,
)
from relic.storage.stores import place_of
from relic.storage.urls import file_name, is_http, scheme_of, without_secrets

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode, PutResult, UpdateVersion

    from relic.storage.stores import Store

SCHEMES = ("http", "https", "s3", "gs", "az")
_CHUNK_BYTES = 1 << 18
_TICK_SECONDS = 0.2
"""Between two looks whether the transfer is to stop."""
_PATIENCE_SECONDS = 1.0
"""Given to a transfer that is to stop, before it is left to end by itself."""
_RAISED = (BaseError, FileNotFoundError, ValueError)
"""What obstore raises; a ValueError for a URL that it cannot read."""
_RETRIES = 3
"""They take a second or two, or more where the host does not answer."""
_PATIENT_RETRIES = 9
"""They take up to a minute."""


class FoundObject(NamedTuple):
    """What a store tells of a file."""

    name: str
    """Its path in the folder that is listed."""
    size: int
    etag: str | None
    """Its version; None where the store does not tell."""
    changed_ns: int
    """When it was last written, in nanoseconds since 1970, by the store's clock."""


class Sink(Protocol):
    """What takes the bytes of a transfer, in order."""

    got: int
    """Bytes that are there."""
    etag: str | None
    """The version of the file that they are of; None where the server does not tell."""

    def write(self, chunk: bytes) -> None: ...


def is_object(url: str) -> bool:
    """Whether this module reads `url`."""
    return scheme_of(url) in SCHEMES


def is_store(url: str) -> bool:
    """Whether `url` is in an object store, where files can be written and listed."""
    return is_object(url) and not is_http(url)


def read_range(url: str, start: int, length: int, *, patient: bool = False) -> memoryview:
    """`length` bytes of `url` from byte `start` on. Raises PermanentError if there are fewer, and NetworkError.

    `patient`: for work that has begun, which is not to end with a fault of the network that lasts some seconds. An
    answer that is cut goes on at the byte.
    """
    retries = _PATIENT_RETRIES if patient else _RETRIES
    try:  # no context manager: after the wait for an answer its few steps cost 25 us, since they left the caches
        store, key = place_of(url, retries)
        data = memoryview(obstore.get_range(store, key, start=start, length=length))
    except _RAISED as error:
        raise _in_one_line(url, error, retries) from None
    if len(data) != length:
        raise PermanentError(f"{without_secrets(url)}: ends before byte {start + length:,}; write the file there again")
    return data


def head(url: str) -> FoundObject:
    """Size and version of `url`. Raises MissingError, other PermanentErrors, and NetworkError."""
    with _one_line(url):
        place = place_of(url, _RETRIES)
        meta = obstore.head(place.store, place.key)
    return _found(file_name(url), meta)


def is_current(url: str, etag: str) -> bool:
    """Whether `url` still has the version `etag`. Asks as a reader of the file does: some URLs are signed for that."""
    with _one_line(url):
        place = place_of(url, _RETRIES)
        try:
            obstore.get(place.store, place.key, options={"if_none_match": etag})
        except NotModifiedError:
            return True
    return False


def put_file(path: Path, url: str) -> str | None:
    """Write the file `path` to `url`: there is the old file or the new one, never a part. Returns its version."""
    _refuse_web_server(url, "takes no files")
    with _one_line(url):
        place = place_of(url, _RETRIES)
        return obstore.put(place.store, place.key, path, max_concurrency=4)["e_tag"]


def put_bytes(data: bytes, url: str, *, instead_of: str | None) -> str | None:
    """Write `data` in the place of the version `instead_of`; None: where there is no file. Returns the new version.

    Returns None where the store has another version. Raises NotConditionalError if it cannot tell.
    """
    _refuse_web_server(url, "takes no files")
    with _one_line(url):
        place = place_of(url, _RETRIES)
        try:
            mode: PutMode = "create" if instead_of is None else _version(place.store, instead_of)
            put = obstore.put(place.store, place.key, data, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            return None
        except FileNotFoundError:  # S3 answers so for a version that was removed
            if instead_of is None:
                raise
            return None
    return _version_text(put)


def read_small(url: str, most_bytes: int) -> tuple[bytes, str]:
    """A file of at most `most_bytes`, and its version for `put_bytes`. Raises as `head` does."""
    with _one_line(url):
        place = place_of(url, _RETRIES)
        response = obstore.get(place.store, place.key)
        if response.meta["size"] > most_bytes:
            raise PermanentError(f"{without_secrets(url)}: sends more than {most_bytes:,} bytes")
        return bytes(response.bytes()), _version_text(response.meta)


def _version(store: "Store", text: str) -> "UpdateVersion":
    """What a store asks for to replace a file: Google's counts versions, the others have ETags."""
    return {"version": text} if isinstance(store, GCSStore) else {"e_tag": text}


def _version_text(told: "ObjectMeta | PutResult") -> str:
    return told.get("version") or told["e_tag"] or ""


def delete_file(url: str) -> None:
    """Remove `url`. It is no error if it is not there."""
    _refuse_web_server(url, "removes no files")
    with _one_line(url):
        place = place_of(url, _RETRIES)
        obstore.delete(place.store, place.key)


def list_files(folder: str) -> Iterator[FoundObject]:
    """The files of a folder of an object store, and of the folders in it, in the order of their names."""
    _refuse_web_server(folder, "does not list its files; name them")
    folder = folder.rstrip("/") + "/"
    with _one_line(folder):
        place = place_of(folder, _RETRIES)
        for metas in obstore.list(place.store, place.key):
            for meta in metas:
                yield _found(meta["path"].removeprefix(place.key).lstrip("/"), meta)


def _found(name: str, meta: "ObjectMeta") -> FoundObject:
    changed_ns = round(meta["last_modified"].timestamp() * 1e9)
    return FoundObject(name, meta["size"], meta["e_tag"], changed_ns)


def read_listed(folder: str, name: str, etag: str | None) -> bytes | None:
    """A file of `list_files`, read whole and patiently; None if it has another version by now. Raises as `head` does.

    Any name that a store lists can be read so, also one with the characters that end the path of a URL.
    """
    folder = folder.rstrip("/") + "/"
    with _one_line(folder + name, _PATIENT_RETRIES):
        store, key = place_of(folder, _PATIENT_RETRIES)
        response = obstore.get(store, key + name)
        told = response.meta["e_tag"]
        if etag and told and told.strip('"') != etag.strip('"'):  # Azure lists versions without the quotes
            return None
        return bytes(response.bytes())


def receive(url: str, sink: Sink, stop: threading.Event) -> None:
    """Bring the bytes of `url` after the first `sink.got`, of the version `sink.etag`, in one request.

    Raises PermanentError, or TransferError where another attempt may succeed, also when `stop` is set: the request ends
    then. Raises NotResumedError if the server sends only the whole file, or has another version.
    """
    copy = _Copy(url, sink)
    threading.Thread(target=copy.run, name="relic-transfer", daemon=True).start()
    got, until = sink.got, time.monotonic() + stores.STALL_SECONDS
    try:
        while not copy.ended.wait(_TICK_SECONDS):
            if stop.is_set():
                raise TransferError("the transfer was interrupted")
            if sink.got != got:
                got, until = sink.got, time.monotonic() + stores.STALL_SECONDS
            elif time.monotonic() > until:
                raise TransferError(f"less than {_CHUNK_BYTES:,} bytes came in {stores.STALL_SECONDS:.0f} s")
    finally:
        copy.abandon()
    if copy.error is not None:
        raise copy.error


class _Copy:
    """A transfer in a thread of its own: a call of obstore cannot be interrupted.

    obstore's asynchronous calls can be, but its threads then call Python, and those that still do so while Python ends
    abort the process (one run in ten that ended right after a transfer).
    """

    def __init__(self, url: str, sink: Sink) -> None:
        self._url = url
        self._sink = sink
        self._abandoned = False
        self._writing = threading.Lock()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._copy()
        except _RAISED as error:
            self.error = fault(self._url, error)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()

    def abandon(self) -> None:
        """Have no more bytes written. The thread ends at the next chunk; where none comes, at obstore's time-out."""
        with self._writing:
            self._abandoned = True
        self.ended.wait(_PATIENCE_SECONDS)

    def _copy(self) -> None:
        sink, resumed = self._sink, self._sink.got > 0
        place = place_of(self._url, 0)
        options: GetOptions = {"range": {"offset": sink.got}, "if_match": sink.etag} if resumed else {}
        try:
            response = obstore.get(place.store, place.key, options=options)
        except (NotSupportedError, PreconditionError):
            if not resumed:
                raise
            raise NotResumedError("the rest is not sent") from None
        sink.etag = response.meta["e_tag"]
        for chunk in response.stream(min_chunk_size=_CHUNK_BYTES):
            with self._writing:
                if self._abandoned:
                    return
                sink.write(chunk)


@contextmanager
def _one_line(url: str, retries: int | None = None) -> Iterator[None]:
    """Turn what obstore raises, after its own `retries` (`_RETRIES`), into a PermanentError or a NetworkError."""
    try:
        yield
    except _RAISED as error:
        raise _in_one_line(url, error, _RETRIES if retries is None else retries) from None


def _in_one_line(url: str, error: Exception, retries: int) -> Exception:
    found = fault(url, error)
    if not isinstance(found, TransferError):
        return found
    tried = f" in {retries + 1} attempts" if isinstance(found, BusyError) else ""
    return NetworkError(f"{without_secrets(url)}: could not be reached{tried}: {found}")


def _refuse_web_server(url: str, what: str) -> None:
    if is_http(url):
        raise PermanentError(f"{without_secrets(url)}: a web server {what}; object stores are s3://, gs:// and az://")
