"""Handlers hold inside their block only, and only the main thread sets them."""

import os
import signal
import threading

import pytest

from relic.signals import handling


def test_the_handlers_are_those_of_before_after_the_block() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    seen: list[int] = []
    with handling((signal.SIGTERM, signal.SIGUSR1), lambda: seen.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == [1, 1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_what_the_handler_raises_ends_the_block() -> None:
    class End(BaseException):
        pass

    def end() -> None:
        raise End

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(End), handling((signal.SIGTERM,), end):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_sets_no_handler() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with handling((signal.SIGTERM,), lambda: None):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
