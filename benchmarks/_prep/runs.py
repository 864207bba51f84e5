"""Time runs of make_shards.py from outside: images per second, time until the first shard, and memory."""

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._shared.packing import plain_packing
from prep.images import LocalImages
from prep.shard_worker import make_crops
from prep.tasks import KeyedSource
from relic.errors import InputError
from relic.options import Encoding
from relic.pictures.listing import Source
from relic.shards.npy import read_npy

SHARDS_PER_WORKER = 4
_COMMAND = (sys.executable, str(Path(__file__).resolve().parents[2] / "prep" / "make_shards.py"))
_LINKS_PER_FILE = 50_000
_POLL_SECONDS = 0.005
_WATCH_SECONDS = 0.2
_SETTLE_SECONDS_PER_BYTE = 2e-9
_START_SECONDS = 120.0
_PSNR_IMAGES = 200


class PackVariant(NamedTuple):
    """What is measured: the encoding of crops, the decoding of JPEGs, and the number of workers."""

    encoding: Encoding
    decode: str
    workers: int


class PackRun(NamedTuple):
    """One run of the command: images, wall-clock seconds, and the resident memory of its largest process in MB."""

    images: int
    seconds: float
    peak_mb: float


class Rate(NamedTuple):
    """The result of a long and a short run together."""

    images_per_second: float
    start_seconds: float
    """Seconds of a run that do not depend on the number of images."""
    peak_mb: float


def link_images(images: Sequence[Path], folder: Path, count: int) -> Path:
    """Make a folder of COCO's layout with `count` links to `images`, in turn. Returns the folder."""
    train = folder / "train2017"
    train.mkdir(parents=True)
    for number in range(count):
        source = images[number % len(images)]
        (train / f"{number:012d}{source.suffix}").symlink_to(source.resolve())
    return folder


def measure_rate(images: Sequence[Path], work: Path, variant: PackVariant, images_per_worker: int) -> Rate:
    """Images per second without the start of a run: the difference between a run and one with a quarter of the shards.

    The difference includes everything that is done per image or per shard (listing, hashing, storing, publishing), but
    not what is done once per run. If the difference in time is not positive, the whole long run is used.
    """
    per_shard = images_per_worker // SHARDS_PER_WORKER
    short, long = (
        _run(images, work, variant, per_shard, shards * variant.workers) for shards in (1, SHARDS_PER_WORKER)
    )
    more_seconds = long.seconds - short.seconds
    rate = (long.images - short.images) / more_seconds if more_seconds > 0 else long.images / long.seconds
    return Rate(rate, max(0.0, long.seconds - long.images / rate), max(short.peak_mb, long.peak_mb))


def _run(images: Sequence[Path], work: Path, variant: PackVariant, per_shard: int, shards: int) -> PackRun:
    coco, out = work / "coco", work / "out"
    removed = sum(path.stat().st_size for path in out.glob("*"))
    for folder in (coco, out):
        shutil.rmtree(folder, ignore_errors=True)
    count = per_shard * shards
    link_images(images, coco, count)
    flags = ("--encoding", variant.encoding, "--decode", variant.decode, "--workers", str(variant.workers))
    command = [*_COMMAND, *_folders(coco, out), *flags, "--samples_per_shard", str(per_shard)]
    os.sync()  # the data of the run before must not be written during this run,
    time.sleep(removed * _SETTLE_SECONDS_PER_BYTE)  # and the disk must have freed the removed files
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with _memory_watched(process.pid) as peaks_mb:
        _, error = process.communicate()
        seconds = time.monotonic() - began
    if process.returncode:
        raise InputError(f"prep/make_shards.py failed: {' '.join(error.split())}")
    return PackRun(count, seconds, max(peaks_mb, default=0.0))


@contextmanager
def _memory_watched(pid: int) -> Iterator[list[float]]:
    """Yield a list that is filled with the peak resident memory, in MB, of the process and its children.

    wait4() is not used, because its peak includes the memory of the process that started them.
    """
    done = threading.Event()
    peaks_mb: list[float] = []

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            for process in (pid, *_children(pid)):
                peaks_mb.extend(_peak_mb(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks_mb
    finally:
        done.set()
        thread.join()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak_mb(pid: int) -> list[float]:
    """The peak resident memory from the kernel; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]


def _folders(coco: Path, out: Path) -> list[str]:
    return ["--coco_dir", str(coco), "--out_dir", str(out), "--include_val", "false"]


def median_rates(rates: Sequence[Rate]) -> Rate:
    """The median of the rates and start times, and the largest memory."""
    speeds, starts, peaks = zip(*rates, strict=True)
    return Rate(statistics.median(speeds), statistics.median(starts), max(peaks))


def seconds_to_start(image: Path, work: Path, files: int) -> float:
    """Seconds from the command to the first file of a shard, for a folder of `files` images."""
    coco, out = work / "many", work / "many_out"
    train = coco / "train2017"
    train.mkdir(parents=True)
    data = image.read_bytes()
    for number in range(files):
        path = train / f"{number:012d}{image.suffix}"
        if number % _LINKS_PER_FILE == 0:  # file systems limit the number of links to one file
            path.write_bytes(data)
            original = path
        else:
            os.link(original, path)
    began = time.monotonic()
    process = subprocess.Popen([*_COMMAND, *_folders(coco, out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not any(out.glob("train-*.tar*")):
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise InputError(f"prep/make_shards.py did not begin to pack {files:,} files")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.communicate()


class Likeness(NamedTuple):
    """PSNR in dB between crops of the fast and the exact decode: over all pixels, and of the worst crop."""

    overall_db: float
    worst_db: float


def fast_likeness(images: Sequence[Path], side: int) -> Likeness:
    """Compare fast and exact crops of some of the images."""
    errors = []
    for path in images[:: max(1, len(images) // _PSNR_IMAGES)]:
        keyed = KeyedSource(Source(path.name, path.stat().st_size), "crop")
        exact, fast = (
            make_crops(
                LocalImages(path.parent), keyed, plain_packing(side, crop="center", samples_per_shard=1, decode=decode)
            )
            for decode in ("exact", "fast")
        )
        both = [read_npy(memoryview(crops[0].payload)).astype(float) for crops in (exact, fast)]
        errors.append(float(np.mean((both[0] - both[1]) ** 2)))
    return Likeness(_psnr_db(float(np.mean(errors))), _psnr_db(max(errors)))


def _psnr_db(mean_squared_error: float) -> float:
    """10 log10(255^2 / MSE), at most 99 dB."""
    return min(99.0, float(10 * np.log10(255**2 / max(mean_squared_error, 1e-9))))
