"""The bytes of one URL, from the command that its scheme stands for. No command outlives its transfer.

`http`, `https`, `ftp`, `ftps`, `sftp` and `scp` use curl, `s3` the aws command, `gs` gsutil, `pipe:` a shell.
webdataset's gopen opens the other schemes.
"""

import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import NamedTuple

from relic.errors import InputError
from relic.storage.urls import without_secrets

STALL_SECONDS = 60.0
"""A transfer that brings less than `_LEAST_BYTES` in this time has failed, unless it ends."""
_LEAST_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_TICK_SECONDS = 0.2
"""Between two looks whether the transfer is to stop."""
_WORDS_BYTES = 4096
"""Kept of the end of what a command says."""
_CURL_SCHEMES = ("http", "https", "ftp", "ftps", "sftp", "scp")
_CURL = ("curl", "--config", "-", "--silent", "--location", "--fail", "--globoff", "--connect-timeout", "30")
_HTTP_STATUS = "relic-http-status "
_HTTP_ERROR = 22
_BUSY = {"408", "425", "429", "500", "502", "503", "504"}
"""HTTP codes after which another attempt may succeed."""
_CURL_EXIT_CODES = {
    1: "it leads to another protocol, or its server does not speak HTTP",
    3: "it is not a URL that curl reads",
    5: "the proxy is not known",
    6: "the host is not known",
    7: "the host does not answer",
    8: "the server's answer is not understood",
    18: "the connection was cut",
    28: "the host does not answer in time",
    35: "the host does not speak TLS",
    47: "the server redirects without end",
    52: "the server sent nothing",
    56: "the connection was cut",
    60: "the host's certificate is not valid",
}
_CURL_UNKNOWN, _CURL_FINAL = {5, 6}, {1, 3, 47, 60}
_FINAL_WORDS = re.compile(
    r"credentials|\(40[134]\)|AccessDenied|NoSuch(Key|Bucket)|No URLs matched|not configured", re.I
)
"""In the words of aws and gsutil where another attempt does not help."""
_NOT_INSTALLED = 127


class PermanentError(InputError):
    """Another attempt does not help: the file does not exist, is not allowed, or is no shard."""


class TransferError(Exception):
    """A transfer failed. Another attempt may succeed."""


class BusyError(TransferError):
    """The server asks to come back later."""


class UnknownHostError(TransferError):
    """There is no such host, so another attempt waits in vain."""


class _Command(NamedTuple):
    arguments: tuple[str, ...]
    given: bytes = b""
    """Its standard input."""
    shell: bool = False


def chunks_of(url: str, stop: threading.Event) -> Generator[bytes, None, None]:
    """The bytes of `url`. Ends early, with a TransferError, when `stop` is set.

    Raises PermanentError, or TransferError where another attempt may succeed.
    """
    command = _command_of(url)
    if command is None:
        yield from _chunks_of_gopen(url)
        return
    try:
        process = subprocess.Popen(
            command.arguments[0] if command.shell else command.arguments,
            shell=command.shell,
            stdin=subprocess.PIPE if command.given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if command.shell else subprocess.PIPE,
            start_new_session=True,  # a killed shell or wrapper would leave what it started
        )
    except OSError as error:
        raise PermanentError(
            f"{without_secrets(url)}: needs the command {command.arguments[0]}: {error.strerror}"
        ) from error
    said = bytearray()
    try:
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(command.given)
        yield from _chunks_of_process(process, said, stop)
        _check_exit_code(url, process, said.decode(errors="replace"))
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _command_of(url: str) -> _Command | None:
    scheme = url.partition(":")[0].lower()
    if scheme == "pipe":
        return _Command((url.partition(":")[2],), shell=True)
    if scheme == "s3":
        return _Command(("aws", "s3", "cp", url, "-"))
    if scheme == "gs":
        return _Command(("gsutil", "-q", "cat", url))
    if scheme in _CURL_SCHEMES:
        return _Command(_CURL, _curl_config(url))
    return None


def _curl_config(url: str) -> bytes:
    """Lines for curl: every user of the machine can read the arguments of a command, and a URL may hold a password."""
    escaped = url.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    status = f'write-out = "%{{stderr}}{_HTTP_STATUS}%{{http_code}}"\n'
    return f'url = "{escaped}"\n{status}'.encode("utf-8", "surrogateescape")


def _chunks_of_gopen(url: str) -> Iterator[bytes]:
    from webdataset.gopen import gopen  # imports torch, so only when a file must be fetched

    try:
        with gopen(url, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except (OSError, ValueError, ImportError) as error:
        # No such scheme, or no such program. The error may hold the URL, and so a password.
        reason = str(error).replace(url, without_secrets(url))
        raise PermanentError(f"{without_secrets(url)}: cannot be opened ({reason})") from error


def _chunks_of_process(process: "subprocess.Popen[bytes]", said: bytearray, stop: threading.Event) -> Iterator[bytes]:
    """What the process writes. `said` gets the end of what it writes to standard error."""
    poll = select.poll()
    pipes = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe is not None]
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    until, got, left = time.monotonic() + STALL_SECONDS, 0, set(pipes)
    while left:
        for pipe, _ in poll.poll(_TICK_SECONDS * 1000):
            chunk = os.read(pipe, _CHUNK_BYTES)
            if not chunk:
                poll.unregister(pipe)
                left.remove(pipe)
            elif pipe == pipes[0]:
                yield chunk
                got += len(chunk)
            else:
                said += chunk
                del said[:-_WORDS_BYTES]
        if stop.is_set():
            raise TransferError("the transfer was interrupted")
        if got >= _LEAST_BYTES:
            until, got = time.monotonic() + STALL_SECONDS, 0
        elif time.monotonic() > until:
            raise TransferError(f"{f'only {got} bytes came in' if got else 'no byte came for'} {STALL_SECONDS:.0f} s")


def _check_exit_code(url: str, process: "subprocess.Popen[bytes]", said: str) -> None:
    """Raise for a command that failed."""
    try:
        code = process.wait(STALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise TransferError("the transfer has ended, but its command has not") from None
    if code == 0:
        return
    if process.args == _CURL:
        raise _curl_error(url, code, said.rpartition(_HTTP_STATUS)[2])
    last = said.strip().rpartition("\n")[2].strip()
    what = "its command is not installed" if code == _NOT_INSTALLED else f"its command ended with exit code {code}"
    if code == _NOT_INSTALLED or _FINAL_WORDS.search(last):
        raise PermanentError(f"{without_secrets(url)}: {last or what}")
    raise TransferError(f"{what}: {last}" if last else what)


def _curl_error(url: str, code: int, status: str) -> Exception:
    if code == _HTTP_ERROR:
        if status in _BUSY:
            return BusyError(f"the server fails (HTTP {status})")
        return PermanentError(
            f"{without_secrets(url)}: the server refuses it (HTTP {status or 'error'}: not there, or not allowed)"
        )
    what = _CURL_EXIT_CODES.get(code, f"its command ended with exit code {code}")
    if code in _CURL_UNKNOWN:
        return UnknownHostError(what)
    return PermanentError(f"{without_secrets(url)}: {what}") if code in _CURL_FINAL else TransferError(what)
