"""Encode one image's symbols to bytes and decode them, in this process or in several. Imports no torch.

The compiled coder holds the GIL, so threads would wait for each other. It therefore runs in separate processes, which
import only numpy and start quickly.
"""

import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

from relic.arrays import Symbols
from relic.bitstream.coder import load_coder
from relic.bitstream.container import OVERHEAD_BYTES, pack, unpack
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables
from relic.errors import InputError


class InexactError(RuntimeError):
    """The decoded symbols differ from the encoded ones, or the stream's length does not agree with its tables.

    The numbers of such a run would be wrong. The message names codec and image.
    """


class RoundTrip(NamedTuple):
    """An image's symbols, encoded to the bytes of a `.relic` file and decoded."""

    symbols: Symbols
    """(M, h, w), as decoded."""
    payload_bytes: int
    """The bytes of the symbols in the file."""
    file_bytes: int
    expected_bits: float
    """The symbols' code length under the tables."""
    plain_bits: float
    """Their code length without contexts."""
    pack_ms: float
    unpack_ms: float


class CodeSymbols(Protocol):
    """Encodes and decodes the symbols (M, h, w) of an image of width x height pixels."""

    def __call__(self, symbols: Symbols, width: int, height: int) -> RoundTrip: ...


def round_trip(symbols: Symbols, width: int, height: int, tables: Tables) -> RoundTrip:
    """Pack and unpack. Raises InputError for symbols that cannot be coded, InexactError for an unreadable stream."""
    began = time.perf_counter()
    file = pack(symbols, width, height, tables)
    packed = time.perf_counter()
    try:
        decoded = unpack(file, tables)
    except InputError as error:
        raise InexactError(f"the stream just written cannot be read: {error}") from error
    unpacked = time.perf_counter()
    return RoundTrip(
        decoded.symbols,
        payload_bytes=len(file) - OVERHEAD_BYTES,
        file_bytes=len(file),
        expected_bits=code_length_bits(symbols, tables),
        plain_bits=code_length_bits(symbols, tables.plain()),
        pack_ms=1000 * (packed - began),
        unpack_ms=1000 * (unpacked - packed),
    )


@contextmanager
def coders(tables: Tables, processes: int) -> Iterator[CodeSymbols]:
    """Yield a function that codes symbols under `tables`. Any thread may call it.

    It runs in this process if `processes` is 1, else in that many processes. A call uses one process, and waits while
    none is free. The processes end with the block. If this process is killed, they end too: their pipe is closed.
    """
    if processes == 1:
        yield lambda symbols, width, height: round_trip(symbols, width, height, tables)
        return
    # Spawned, not forked: a fork would copy locks of torch without the threads that hold them.
    context = multiprocessing.get_context("spawn")
    free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    workers = []
    try:
        with _without_interrupts():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                worker = context.Process(target=_serve, args=(theirs, tables), daemon=True)
                worker.start()
                workers.append(worker)
                theirs.close()
                free.put(ours)
        yield lambda symbols, width, height: _ask(free, symbols, width, height)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start in this block have SIGINT blocked; here, Ctrl-C takes effect after the block.

    A process that Ctrl-C reaches while it imports, or whose start is cut short, prints a traceback.
    """
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, so it must not start inside the block
    pressed: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    # Other threads have SIGINT unblocked. So it can still arrive in this process.
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if is_main else None
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        if before is not None:
            signal.signal(signal.SIGINT, before)
    if pressed and before is not signal.SIG_IGN:
        raise KeyboardInterrupt


def _ask(free: "queue.SimpleQueue[Connection]", symbols: Symbols, width: int, height: int) -> RoundTrip:
    """One call over one pipe. The threads and queues of an executor would take as long as coding a crop."""
    connection = free.get()
    try:
        connection.send((symbols, width, height))
        answer = connection.recv()
    except (EOFError, OSError) as error:
        raise InputError("a coding process was killed, perhaps for memory; use --workers 1") from error
    finally:
        free.put(connection)
    if isinstance(answer, Exception):
        raise answer
    result: RoundTrip = answer
    return result


def _serve(connection: Connection, tables: Tables) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its workers
    load_coder()
    # Computed here, so that the first image's time does not include them.
    _ = tables.rows, tables.offsets, tables.least_bits, tables.stream_digest
    while True:
        try:
            symbols, width, height = connection.recv()
        except EOFError:
            return
        try:
            connection.send(round_trip(symbols, width, height, tables))
        except (InputError, InexactError, MemoryError) as error:
            connection.send(error)
