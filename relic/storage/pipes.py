"""The bytes that a `pipe:` command writes. No command outlives its transfer."""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress

from relic.storage.faults import PermanentError, TransferError
from relic.storage.urls import without_secrets

STALL_SECONDS = 60.0
"""A command that writes less than `_LEAST_BYTES` in this time has failed, unless it ends."""
_LEAST_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_TICK_SECONDS = 0.2
"""Between two looks whether the transfer is to stop."""
_NOT_INSTALLED = 127


def chunks_of(url: str, stop: threading.Event) -> Generator[bytes, None, None]:
    """What the command of `url` writes. Ends early, with a TransferError, when `stop` is set.

    Raises PermanentError, or TransferError where another attempt may succeed.
    """
    process = subprocess.Popen(
        url.partition(":")[2],
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a killed shell would leave what it started
    )
    try:
        yield from _chunks_of_process(process, stop)
        _check_exit_code(url, process)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _chunks_of_process(process: "subprocess.Popen[bytes]", stop: threading.Event) -> Iterator[bytes]:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    until, got = time.monotonic() + STALL_SECONDS, 0
    while True:
        if poll.poll(_TICK_SECONDS * 1000):
            chunk = os.read(pipe, _CHUNK_BYTES)
            if not chunk:
                return
            yield chunk
            got += len(chunk)
        if stop.is_set():
            raise TransferError("the transfer was interrupted")
        if got >= _LEAST_BYTES:
            until, got = time.monotonic() + STALL_SECONDS, 0
        elif time.monotonic() > until:
            raise TransferError(f"{f'only {got} bytes came in' if got else 'no byte came for'} {STALL_SECONDS:.0f} s")


def _check_exit_code(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Raise for a command that failed."""
    try:
        code = process.wait(STALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise TransferError("the transfer has ended, but its command has not") from None
    if code == _NOT_INSTALLED:
        raise PermanentError(f"{without_secrets(url)}: its command is not installed")
    if code:
        raise TransferError(f"its command ended with exit code {code}")
