"""Handle signals inside a block."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(numbers: tuple[signal.Signals, ...], handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` for these signals inside the block, in the place of their handlers. It may raise.

    Does nothing outside the main thread: Python lets no other thread set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: handle()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate() -> None:
    """End the process as SIGTERM does, but leave every block on the way: temporary files are removed."""
    raise SystemExit(128 + signal.SIGTERM)
