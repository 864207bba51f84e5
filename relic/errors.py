"""`InputError`, the exception for mistakes that the user can correct, and how every command line reports it.

Needs only the standard library. Exit codes: 0 done, 1 the work failed, 2 the command line was refused before the work
began, 130 interrupted by Ctrl-C.
"""

import contextlib
import functools
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_SHOWN = 700
"""Characters that a message shows of its beginning, and of its end."""


_FULL = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
"""In torch's errors for a full memory of the CPU, which are plain RuntimeErrors."""

_LOST = "gloo/transport"
"""In torch's error, a plain RuntimeError, for a process that ended while this one waited for it in a collective."""


class InputError(ValueError):
    """Bad input (a flag, a file, a folder). The message is one line: what is wrong, where, and what to do.

    Command lines print it, and an OSError, without a traceback. Any other exception is a bug and keeps its traceback.
    """


class RefusedError(InputError):
    """The command line does not go with what is on this machine. Nothing was begun: exit code 2."""


@contextlib.contextmanager
def before_work() -> Iterator[None]:
    """Turn an InputError inside the block into RefusedError: exit code 2.

    For plans, and for files named on the command line that only torch can read.
    """
    try:
        yield
    except InputError as error:
        raise RefusedError(str(error)) from error


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Put `source: ` before the message of an InputError inside the block: a file, or a flag and its value.

    A full memory of the CPU becomes such an InputError.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if not _is_full_memory(error):
            raise
        raise InputError(f"{source}: {_full_memory(error)}") from error


def _is_full_memory(error: BaseException) -> bool:
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)
    return told or isinstance(error, MemoryError)


def _lost_processes(error: BaseException) -> str:
    return f"another process of this run has ended; its own message tells why ({error})"


def _full_memory(error: BaseException) -> str:
    return f"the memory is full; use smaller images, smaller batches or fewer workers ({error})"


def speaks_for_all() -> bool:
    """Whether this process prints what every process of a machine would print: it is not its rank 1, 2, ..."""
    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK", ""))
    return not (rank.isdecimal() and rank.strip("0") and "WORLD_SIZE" in os.environ)


def print_error(prog: str, message: str) -> None:
    """Write one line to standard error. Under `torchrun`, also write it to the file that torchrun's report quotes.

    A message may quote a file that anyone made. So it is cut to some hundred characters, and control characters are
    shown as numbers.
    """
    line = _one_line(message)
    sys.stderr.write(f"{prog}: error: {line}\n")
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError):
            details = {"py_callstack": line, "timestamp": int(time.time())}
            Path(report).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}))


def _one_line(message: str) -> str:
    if len(message) > 2 * _SHOWN:
        message = f"{message[:_SHOWN]} ... {message[-_SHOWN:]}"
    line = " ".join(message.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def command(prog: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a `main(argv) -> exit code`: an InputError or OSError becomes one line and exit code 1.

    With `RELIC_TRACEBACK=1` in the environment, such an error is raised again, so that Python prints its traceback.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the work
                    stream.reconfigure(errors="backslashreplace")
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it reports that it lists fonts
            warnings.filterwarnings("ignore", category=FutureWarning)
            try:
                return main(argv)
            except (Exception, KeyboardInterrupt) as error:
                code = report(prog, error)
                if code is None:
                    raise
                return code

        return run

    return decorate


def report(prog: str, error: BaseException) -> int | None:
    """Print the one line of `error` and return the exit code. None: it is a bug, which needs its traceback."""
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130
    if os.environ.get("RELIC_TRACEBACK"):
        return None
    if isinstance(error, InputError | OSError):
        refused = isinstance(error, RefusedError)
        if not refused or speaks_for_all():
            print_error(prog, str(error))
        return 2 if refused else 1
    if _is_full_memory(error):
        print_error(prog, _full_memory(error))
        return 1
    if isinstance(error, RuntimeError) and _LOST in str(error):
        print_error(prog, _lost_processes(error))
        return 1
    return None
