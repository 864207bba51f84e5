"""One process that writes to a folder of an object store, for as long as it lives.

A file there names the process. It is written only where none is (a conditional request), and written anew every 15
seconds. A process of this machine that has ended is told at once. One of another machine counts as dead when its file
was watched for a minute and not written anew. No clocks are compared.
"""

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Self

from relic.errors import InputError, RefusedError
from relic.storage.faults import MissingError, NetworkError, NotConditionalError, PermanentError
from relic.storage.objects import delete_file, put_bytes, read_small
from relic.storage.urls import in_folder, without_secrets

NAME = ".writer.json"
_MOST_BYTES = 1 << 16
_BEAT_SECONDS = 15.0
_DEAD_SECONDS = 60.0
_POLL_SECONDS = 2.0
_held: set[str] = set()
"""Tokens of this process: one whose end could not be written is not taken for a living one."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """What the file says."""

    host: str
    pid: int
    began: str
    """When the process began, as the kernel counts it: another process may get the same number later."""
    machine: str
    """Equal for all processes that see each other's numbers."""
    token: str
    """Of this claim alone."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


class Claim:
    """This process's claim to the folder `url`. A context: its end gives the folder free.

    Making it raises InputError that names `flag`, RefusedError where another process writes there, and NetworkError. A
    store without conditional requests cannot tell: the log says so.
    """

    def __init__(self, url: str, flag: str) -> None:
        self._shown = f"{flag} {without_secrets(url)}"
        self._file = in_folder(url, NAME)
        own = os.getpid()
        self._writer = _Writer(socket.gethostname(), own, _began(own), _machine(), secrets.token_hex(8))
        self._beats = 0
        self._etag: str | None = None
        self._taken_by: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="relic-claim", daemon=True)
        _held.add(self._writer.token)
        try:
            self._take()
        except NotConditionalError:
            log.warning("%s: this store cannot tell whether another run writes there", self._shown)
        except PermanentError as error:  # no such bucket, or it may only be read
            raise InputError(f"{flag} {error}") from None
        else:
            self._thread.start()

    def check(self) -> None:
        """Raise InputError if another process has taken the folder: this one was believed dead."""
        if self._taken_by is not None:
            raise InputError(f"{self._shown}: {self._taken_by} writes there now; this run writes there no more")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        _held.discard(self._writer.token)
        if self._thread.is_alive():
            self._thread.join()
        if self._etag is not None and self._taken_by is None:
            with contextlib.suppress(InputError, OSError):
                delete_file(self._file)

    def _take(self) -> None:
        while not self._put(None):
            found = self._read()
            if found is None:
                continue  # its process has just ended
            writer, etag = found
            if not _has_ended(writer):
                self._wait_for_silence(writer, etag)
            if self._put(etag):
                return

    def _wait_for_silence(self, writer: _Writer, etag: str) -> None:
        """Return if the process writes nothing for a minute, and raise RefusedError when it does."""
        refused = RefusedError(f"{self._shown}: {writer} writes there; wait until it has ended, or choose another URL")
        if writer.machine == self._writer.machine:
            raise refused
        log.info("%s: waiting up to %.0f seconds for a sign of %s", self._shown, _DEAD_SECONDS, writer)
        until = time.monotonic() + _DEAD_SECONDS
        while time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            found = self._read()
            if found is None:
                return
            if found[1] != etag:
                raise refused

    def _read(self) -> tuple[_Writer, str] | None:
        try:
            data, etag = read_small(self._file, _MOST_BYTES)
        except MissingError:
            return None
        try:
            value = json.loads(data)
            value.pop("beats")
            return _Writer(**value), etag
        except (ValueError, TypeError, KeyError, AttributeError):  # damaged, or of another version
            return _Writer("an unknown host", 0, "", "", ""), etag

    def _put(self, etag: str | None) -> bool:
        """Write the file in the place of the version `etag`, None: where there is none. False if that is not so."""
        self._beats += 1
        data = json.dumps({**dataclasses.asdict(self._writer), "beats": self._beats}).encode()
        written = put_bytes(data, self._file, instead_of=etag)
        if written is None:  # perhaps by this process, whose first attempt seemed to fail
            found = self._read()
            if found is None or found[0] != self._writer:
                return False
            written = found[1]
        self._etag = written
        return True

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                if not self._put(self._etag):
                    found = self._read()
                    self._taken_by = str(found[0]) if found else "another run"
                    return
            except (PermanentError, NetworkError) as error:
                log.info("%s; trying again", error)


def _has_ended(writer: _Writer) -> bool:
    """Whether a process of this machine has ended. False for one of another machine."""
    if writer.machine != _machine():
        return False
    return _began(writer.pid) != writer.began or (writer.pid == os.getpid() and writer.token not in _held)


def _began(pid: int) -> str:
    """When a process began; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _machine() -> str:
    """The running kernel, and the view of its processes: containers have views of their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return secrets.token_hex(8)
