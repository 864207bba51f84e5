"""Run sections one after another, each with a deadline of its own. What was found is kept, whatever happens."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

_AGAIN_SECONDS = 5.0
"""A library may swallow the exception of a deadline. So it is raised again."""

Items = Iterator[tuple[str, Any]]


class Section(NamedTuple):
    """A part of the benchmark."""

    name: str
    seconds: float
    """Its deadline, counted from its own start."""
    items: Callable[[], Items]
    """Measures, and yields the name and the figures of each thing measured, the most wanted first."""


class LateError(BaseException):
    """The deadline has passed. Not an Exception, so that code which goes on after errors does not go on after it."""


def run_sections(sections: list[Section], found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Put the figures of each section into `found` under its name, and call `keep` after each figure.

    A section that fails, or that is late, says so in its figures (`failed`, `late`) and costs only itself.
    """
    for section in sections:
        figures = found[section.name] = {}
        began = time.perf_counter()
        try:
            with _deadline(section.seconds):
                for name, value in section.items():
                    figures[name] = value
                    sys.stderr.write(f"{section.name}, {name}: {value}\n")
                    keep()
        except LateError:
            figures["late"] = f"stopped after {section.seconds:g} s"
        except Exception as error:
            figures["failed"] = in_a_line(error)
        figures["seconds"] = time.perf_counter() - began
        keep()


def attempt_section(measure: Callable[[], Any]) -> Any:
    """What `measure` returns; if it fails, for example with a full memory, why."""
    try:
        return measure()
    except Exception as error:
        return {"failed": in_a_line(error)}


def in_a_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise LateError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
