"""Measure ONNX parts in onnxruntime, in turns, and the time to import `export/codec.py` with its libraries."""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from benchmarks._export.timed_parts import PARTS, TimedPart
from relic.onnx.sessions import open_session

THREADS = {"1": 1, "all": 0}
"""Name in figures -> number of threads for onnxruntime; 0: one per core."""
_LEAST_SECONDS = 0.2
"""A turn repeats its run until this time has passed."""
_IMPORTS = "import export.codec"
_STARTS = 5

Loaded = tuple[onnxruntime.InferenceSession, dict[str, NDArray[Any]]]


def measure(
    parts: Sequence[TimedPart], sizes: Sequence[tuple[int, int]], latent_channels: int, rounds: int
) -> dict[str, float]:
    """`figure_name` -> median milliseconds per run, over all turns."""
    figures: dict[str, float] = {}
    for width, height in sizes:
        for threads, count in THREADS.items():
            loaded: dict[str, Loaded] = {}
            for one in parts:
                session = open_session(one.model.SerializeToString(), threads=count)
                fed = {session.get_inputs()[0].name: one.input_for(width, height, latent_channels)}
                session.run(None, fed)  # warm-up: the first run allocates memory
                loaded[figure_name(one.codec, one.precision, one.part, f"{width}x{height}", threads)] = session, fed
            runs: dict[str, list[float]] = {name: [] for name in loaded}
            for _ in range(rounds):
                for name, (session, fed) in loaded.items():
                    runs[name] += _turn(session, fed)
            figures |= {name: statistics.median(times) for name, times in runs.items()}
    return figures


def _turn(session: onnxruntime.InferenceSession, fed: dict[str, NDArray[Any]]) -> list[float]:
    times: list[float] = []
    while sum(times) < 1000 * _LEAST_SECONDS:
        began = time.perf_counter()
        session.run(None, fed)
        times.append(1000 * (time.perf_counter() - began))
    return times


def figure_name(codec: str, precision: str, part: str, size: str, threads: str) -> str:
    """A name such as `relu_int8_encoder_224x224_all`."""
    return "_".join((codec, precision, part, size, threads))


def speedups(figures: Mapping[str, float], sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Speed ratios: ReLU to GDN in fp32, and INT8 to fp32 of the ReLU codec."""
    found = {}
    for width, height in sizes:
        for part in PARTS:
            for threads in THREADS:
                where = part, f"{width}x{height}", threads
                relu = figures[figure_name("relu", "fp32", *where)]
                found["_".join(("relu_over_gdn", *where))] = figures[figure_name("gdn", "fp32", *where)] / relu
                found["_".join(("int8_over_fp32", *where))] = relu / figures[figure_name("relu", "int8", *where)]
    return found


def import_seconds() -> float:
    """Seconds of a Python process that imports everything that `export/codec.py` uses; median of several runs."""
    root = Path(__file__).resolve().parents[2]
    times = []
    for _ in range(_STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _IMPORTS], cwd=root, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
