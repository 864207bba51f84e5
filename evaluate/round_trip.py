"""Code one image's symbols for real and read them back, in this process or in several. Imports no torch.

The compiled coder holds the GIL, so threads would wait for each other in it: it runs in processes of its own, which
need numpy alone and start in a moment.
"""

import multiprocessing
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from relic.bitstream.coder import load_coder
from relic.bitstream.container import OVERHEAD_BYTES, pack, unpack
from relic.bitstream.tables import Tables, code_length_bits
from relic.errors import InputError

Symbols = npt.NDArray[np.int32]


class InexactError(RuntimeError):
    """What was decoded is not what was encoded, or the stream has another length than its tables give it.

    No number of such a run can be trusted. The message names checkpoint and image.
    """


class RoundTrip(NamedTuple):
    """An image's symbols after a way through the bytes of a `.relic` file."""

    symbols: Symbols
    """(M, h, w), as decoded."""
    payload_bytes: int
    """The symbols' share of the file."""
    file_bytes: int
    expected_bits: float
    """What the symbols cost under the tables."""
    pack_ms: float
    unpack_ms: float


class CodeSymbols(Protocol):
    """Codes symbols (M, h, w) of an image of width x height pixels."""

    def __call__(self, symbols: Symbols, width: int, height: int) -> RoundTrip: ...


def round_trip(symbols: Symbols, width: int, height: int, tables: Tables) -> RoundTrip:
    """Pack and unpack. Raises InputError for what cannot be coded, InexactError where the stream cannot be read."""
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
        pack_ms=1000 * (packed - began),
        unpack_ms=1000 * (unpacked - packed),
    )


@contextmanager
def coders(tables: Tables, processes: int) -> Iterator[CodeSymbols]:
    """A function that codes symbols under `tables`, callable from any thread: here, or in `processes` if over one.

    Each call has a process to itself and waits for one if all are taken. They end with the block, however it ends, and
    with this process: a pipe whose other end is gone reads as ended.
    """
    if processes == 1:
        yield lambda symbols, width, height: round_trip(symbols, width, height, tables)
        return
    # Spawned, not forked: a fork would copy torch's locks without the threads that hold them.
    context = multiprocessing.get_context("spawn")
    free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    workers = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=_serve, args=(theirs, tables), daemon=True))
        workers[-1].start()
        theirs.close()
        free.put(ours)
    try:
        yield lambda symbols, width, height: _ask(free, symbols, width, height)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _ask(free: "queue.SimpleQueue[Connection]", symbols: Symbols, width: int, height: int) -> RoundTrip:
    """One call over one pipe. An executor's threads and queues would cost as much as coding a crop."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends its workers
    load_coder()
    # Made here, they are not in the first image's time.
    _ = tables.rows, tables.offsets, tables.cost_bits, tables.digest
    while True:
        try:
            symbols, width, height = connection.recv()
        except EOFError:
            return
        try:
            connection.send(round_trip(symbols, width, height, tables))
        except (InputError, InexactError, MemoryError) as error:
            connection.send(error)
