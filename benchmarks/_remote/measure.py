"""What `benchmarks/remote.py` measures: a set behind a web server on loopback, against the same set on the disk."""

import dataclasses
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import obstore
from obstore.store import HTTPStore

from benchmarks._loader.measure import consumer_wait
from benchmarks._remote.first_batch import seconds_to_first_batch
from benchmarks._remote.server import serving
from benchmarks._shared.packing import plain_packing
from relic.files import file_sha256
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.index import index_path
from relic.shards.manifest import Manifest, ShardInfo, read_manifest, write_manifest
from relic.shards.npy import npy_header
from relic.shards.shard_set import ShardSet, open_shard_set
from relic.shards.writer import ShardWriter
from relic.storage.cache import check_tar
from relic.storage.download import download
from relic.storage.objects import read_range
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards

_SIDE = 224
_BATCH_SIZE = 64
_RANGE_BYTES = 150_000
_RANGES = 100
_EPOCHS = 8
"""Timed epochs of a small set."""
_ALL_GB = 1000.0


class Starts(NamedTuple):
    """Seconds to the first batch of a set of many shards, by what the cache holds."""

    empty: float
    half: float
    """In mid-epoch, in an empty cache."""
    again: float
    """In mid-epoch, with the cache of the run before."""


class Cpu(NamedTuple):
    """CPU of this process, the server's not counted."""

    fetch: float
    """Seconds per GB."""
    received: float
    """The same by obstore alone, without a file."""
    written: float
    """The same by obstore alone, into a file."""
    sha256: float
    range_us: float
    """Microseconds per read of 150 kB."""
    bare_range_us: float
    """The same by obstore alone."""


def write_set(folder: Path, shards: int, samples: int) -> str:
    """Write raw train crops of noise, into one shard that has many names. Returns the pattern of the tars."""
    folder.mkdir()
    header = npy_header(_SIDE, _SIDE, 128)
    with ShardWriter(folder / "train-000000.tar") as writer:
        for place in range(samples):
            pixels = np.random.default_rng(place).integers(0, 256, _SIDE * _SIDE * 3, dtype=np.uint8)
            writer.add(f"{place:06d}", ".npy", header + pixels.tobytes(), {})
    assert writer.info is not None
    infos: list[ShardInfo] = []
    for number in range(shards):
        infos.append(dataclasses.replace(writer.info, name=f"train-{number:06d}.tar"))
        for first in (writer.path, index_path(writer.path)) if number else ():
            os.link(first, folder / f"train-{number:06d}{first.suffix}")
    packing = plain_packing(_SIDE, crop="random", samples_per_shard=samples)
    write_manifest(folder, Manifest(packing, tuple(infos), shards * samples, 0))
    return f"train-{{000000..{shards - 1:06d}}}.tar"


def measure_starts(folder: Path, pattern: str, caches: Path, latency_ms: float, batch_size: int) -> Starts:
    """With a cache of 1 GB, which fills meanwhile."""
    shards = open_shard_set(folder, "train")
    half = shards.num_samples // 2 // batch_size * batch_size
    room = 1.0
    with serving(folder, latency_ms=latency_ms) as url:
        empty = seconds_to_first_batch(f"{url}/{pattern}", caches / "a", room, batch_size, 0)
        resumed = seconds_to_first_batch(f"{url}/{pattern}", caches / "b", room, batch_size, half)
        again = seconds_to_first_batch(f"{url}/{pattern}", caches / "a", room, batch_size, half)
    return Starts(empty, resumed, again)


def measure_wait(folder: Path, pattern: str, caches: Path, mb_per_second: float, latency_ms: float) -> float:
    """The share that a consumer at half the link's speed waits, with a cache of half the set that fills meanwhile."""
    batch_bytes = _BATCH_SIZE * _SIDE * _SIDE * 3
    whole = sum(open_shard_set(folder, "train").tar_bytes)
    with serving(folder, mb_per_second=mb_per_second, latency_ms=latency_ms) as url:
        shards = _opened(f"{url}/{pattern}", caches / "wait", whole / 2e9)
        batches = 2 * shards.num_samples // _BATCH_SIZE
        return consumer_wait(shards, _BATCH_SIZE, batch_bytes / (mb_per_second * 1e6 / 2), batches)


def measure_cached(folder: Path, pattern: str, caches: Path, rounds: int) -> float:
    """Images per second from a cache that holds the set, as a share of those of a folder with a copy of it; in turns.

    Of a copy, because the shards of `folder` are one file, of which the processor's caches hold a larger part.
    """
    with serving(folder) as url:
        cached = _opened(f"{url}/{pattern}", caches / "cached", _ALL_GB)
        while not all(tar.exists() for tar in cached.tars):
            time.sleep(0.1)
        copy = caches / "copy"
        copy.mkdir()
        for path in folder.iterdir():
            shutil.copyfile(path, copy / path.name)
        local = open_shard_set(copy, "train")
        return statistics.median(_images_per_second(cached) / _images_per_second(local) for _ in range(rounds))


def measure_cpu(folder: Path, caches: Path, rounds: int) -> Cpu:
    """Of whole shards to the disk, with their sha256, and of parts of a shard, in turns with the same without relic."""
    manifest = read_manifest(folder, "train")
    assert manifest is not None
    info = manifest.shards[0]
    parts = info.bytes // _RANGE_BYTES
    with serving(folder) as url:
        first = f"{url}/{info.name}"

        def fetch() -> None:
            download(first, caches / "fetched.tar", lambda path: check_tar(path, info))
            (caches / "fetched.tar").unlink()

        store = HTTPStore.from_url(url, client_options={"allow_http": True})

        def receive(file: IO[bytes] | None = None) -> None:
            for chunk in obstore.get(store, info.name).stream(min_chunk_size=1 << 18):
                if file is not None:
                    file.write(chunk)

        def write() -> None:
            with (caches / "received.tar").open("wb") as file:
                receive(file)
                os.fsync(file.fileno())
            (caches / "received.tar").unlink()

        def read() -> None:
            for number in range(_RANGES):
                read_range(first, number % parts * _RANGE_BYTES, _RANGE_BYTES)

        def read_bare() -> None:
            for number in range(_RANGES):
                obstore.get_range(store, info.name, start=number % parts * _RANGE_BYTES, length=_RANGE_BYTES)

        per_gb, per_range = 1e9 / info.bytes, 1e6 / _RANGES
        works: tuple[tuple[Callable[[], object], float], ...] = (
            (fetch, per_gb), (receive, per_gb), (write, per_gb), (lambda: file_sha256(folder / info.name), per_gb),
            (read, per_range), (read_bare, per_range),
        )  # fmt: skip
        for work, _ in works:
            work()
        turns = [[_cpu_seconds(work) * scale for work, scale in works] for _ in range(4 * rounds)]
    return Cpu(*map(statistics.median, zip(*turns, strict=True)))


def _opened(pattern: str, cache: Path, cache_gb: float) -> ShardSet:
    os.environ["XDG_CACHE_HOME"] = str(cache)
    return resolve_shards(pattern, "train", room=CacheRoom(cache_gb))


def _images_per_second(shards: ShardSet) -> float:
    """Of the epochs after the first."""
    with ShardLoader(shards, batch_size=_BATCH_SIZE) as loader:
        images = 0
        for epoch in range(1 + _EPOCHS):
            if epoch == 1:  # all shards are open, all samples verified
                images, began = 0, time.perf_counter()
            batches = train_batches(epoch_order(shards.samples, 0, epoch), _BATCH_SIZE, 0, 1)
            images += sum(len(batch.keys) for batch in loader.batches(batches))
        return images / (time.perf_counter() - began)


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
