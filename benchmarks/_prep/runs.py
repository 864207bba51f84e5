"""Real runs of make_shards.py, timed from outside: how fast they pack, how soon they begin, how large they grow."""

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

from prep.shard_worker import make_crops
from prep.tasks import KeyedSource
from relic.errors import InputError
from relic.options import Encoding
from relic.pictures.listing import Source
from relic.shards.manifest import Packing
from relic.shards.npy import HEADER_BYTES

SHARDS_A_WORKER = 4
_COMMAND = (sys.executable, str(Path(__file__).resolve().parents[2] / "prep" / "make_shards.py"))
_LINKS_A_FILE = 50_000
_POLL_SECONDS = 0.005
_WATCH_SECONDS = 0.2
_SETTLE_SECONDS_A_BYTE = 2e-9
_START_SECONDS = 120.0
_PSNR_IMAGES = 200


class Variant(NamedTuple):
    """What is measured: how crops are stored, how JPEGs are decoded, by how many workers."""

    encoding: Encoding
    decode: str
    workers: int


class Run(NamedTuple):
    """One run of the command: images, wall seconds, and the resident memory of its largest process, in MB."""

    images: int
    seconds: float
    peak_mb: float


class Rate(NamedTuple):
    """What a long and a short run say together."""

    images_per_second: float
    start_seconds: float
    """What a run takes besides, whatever the number of images."""
    peak_mb: float


def link_images(images: Sequence[Path], folder: Path, count: int) -> Path:
    """A folder of COCO's layout with `count` links to `images`, in turn; return it."""
    train = folder / "train2017"
    train.mkdir(parents=True)
    for number in range(count):
        source = images[number % len(images)]
        (train / f"{number:012d}{source.suffix}").symlink_to(source.resolve())
    return folder


def measure_rate(images: Sequence[Path], work: Path, variant: Variant, images_per_worker: int) -> Rate:
    """Images per second once under way: what a run of all the shards has more than one of a quarter of them.

    In the difference everything counts that is done for an image or a shard (listing, hashing, storing, publishing),
    and what is done once does not. Runs too short to tell apart are counted whole.
    """
    per_shard = images_per_worker // SHARDS_A_WORKER
    short, long = (_run(images, work, variant, per_shard, shards * variant.workers) for shards in (1, SHARDS_A_WORKER))
    more_seconds = long.seconds - short.seconds
    rate = (long.images - short.images) / more_seconds if more_seconds > 0 else long.images / long.seconds
    return Rate(rate, max(0.0, long.seconds - long.images / rate), max(short.peak_mb, long.peak_mb))


def _run(images: Sequence[Path], work: Path, variant: Variant, per_shard: int, shards: int) -> Run:
    coco, out = work / "coco", work / "out"
    removed = sum(path.stat().st_size for path in out.glob("*"))
    for folder in (coco, out):
        shutil.rmtree(folder, ignore_errors=True)
    count = per_shard * shards
    link_images(images, coco, count)
    flags = ("--encoding", variant.encoding, "--decode", variant.decode, "--workers", str(variant.workers))
    command = [*_COMMAND, *_folders(coco, out), *flags, "--samples_per_shard", str(per_shard)]
    os.sync()  # this run must not pay for what the one before left to store,
    time.sleep(removed * _SETTLE_SECONDS_A_BYTE)  # nor for the disk's clearing of what was removed
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with _memory_watched(process.pid) as peaks_mb:
        _, error = process.communicate()
        seconds = time.monotonic() - began
    if process.returncode:
        raise InputError(f"prep/make_shards.py failed: {' '.join(error.split())}")
    return Run(count, seconds, max(peaks_mb, default=0.0))


@contextmanager
def _memory_watched(pid: int) -> Iterator[list[float]]:
    """Yield a list that fills with the peak resident memory, in MB, of the process and its children, while they live.

    Not from wait4(): its figure begins with the memory of the process that started them.
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
    """The kernel's high-water mark; nothing when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]


def _folders(coco: Path, out: Path) -> list[str]:
    return ["--coco_dir", str(coco), "--out_dir", str(out), "--include_val", "false"]


def median_rates(rates: Sequence[Rate]) -> Rate:
    """The median of each, but the largest memory."""
    speeds, starts, peaks = zip(*rates, strict=True)
    return Rate(statistics.median(speeds), statistics.median(starts), max(peaks))


def seconds_to_start(image: Path, work: Path, files: int) -> float:
    """Seconds from the command to the first shard's file, with a folder of `files` images before it."""
    coco, out = work / "many", work / "many_out"
    train = coco / "train2017"
    train.mkdir(parents=True)
    data = image.read_bytes()
    for number in range(files):
        path = train / f"{number:012d}{image.suffix}"
        if number % _LINKS_A_FILE == 0:  # file systems limit the links to one file
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
    """PSNR in dB of the fast decode's crops against the exact one's: over all pixels, and of the worst crop."""

    overall_db: float
    worst_db: float


def fast_likeness(images: Sequence[Path], side: int) -> Likeness:
    """Compare the crops of some of the images."""
    errors = []
    for path in images[:: max(1, len(images) // _PSNR_IMAGES)]:
        keyed = KeyedSource(Source(path.name, path.stat().st_size), "crop")
        exact, fast = (
            make_crops(
                path.parent,
                keyed,
                Packing(
                    split="train",
                    width=side,
                    height=side,
                    crop="center",
                    crops_per_image=1,
                    encoding="raw",
                    jpeg_quality=95,
                    decode=decode,
                    samples_per_shard=1,
                    seed=0,
                    sources_sha256="",
                    libraries={},
                ),
            )
            for decode in ("exact", "fast")
        )
        both = [np.frombuffer(crops[0].payload, np.uint8, offset=HEADER_BYTES).astype(float) for crops in (exact, fast)]
        errors.append(float(np.mean((both[0] - both[1]) ** 2)))
    return Likeness(_psnr_db(float(np.mean(errors))), _psnr_db(max(errors)))


def _psnr_db(mean_squared_error: float) -> float:
    """10 log10(255^2 / MSE); 99 dB stands for no difference that 8 bits can show."""
    return min(99.0, float(10 * np.log10(255**2 / max(mean_squared_error, 1e-9))))
