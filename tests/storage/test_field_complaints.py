"""What users of other loaders of remote sets complained of, tried here. docs/scale.md has the table."""

import ctypes
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.shards.shard_set import ShardSet
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards
from tests.conftest import write_shards
from tests.storage.http_shards import ShardServer, serve
from tests.storage.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (7, 5, 1)
KEYS = [f"train{number:05d}" for number in range(sum(COUNTS))]
PATTERN = "train-{000000..000002}.tar"
BOUNDS = pytest.mark.parametrize("cache_gb", [None, 1e-9, 1.5e-4, 1.0], ids=["whole", "none", "some", "all"])
"""Of the cache. Without one, the set is fetched whole."""

pytestmark = [pytest.mark.commands, pytest.mark.timeout(60)]


@pytest.fixture
def packed(tmp_path: Path, s3: S3Server) -> Path:
    return put(tmp_path / "packed", s3, "bucket/set", seed=0)


def put(folder: Path, s3: S3Server, where: str, seed: int) -> Path:
    write_shards(folder, counts=COUNTS, side=64, seed=seed)
    s3.put_folder(where, {path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


def opened(spec: str, cache_gb: float | None) -> ShardSet:
    return resolve_shards(spec, "train", room=None if cache_gb is None else CacheRoom(cache_gb))


def epoch(shards: ShardSet, number: int = 0) -> list[tuple[str, bytes]]:
    """Key and pixels of each sample, in the order of a training epoch."""
    with ShardLoader(shards, batch_size=1) as loader:
        batches = loader.batches(train_batches(epoch_order(shards.samples, 0, number), 1, 0, 1))
        return [(batch.keys[0], batch.images.numpy().tobytes()) for batch in batches]


def cached_tars() -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"], "relic", "parts").glob("*/*.tar"))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@BOUNDS
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_uneven_shards_of_a_bucket_give_all_ranks_as_many_batches(
    packed: Path, cache_gb: float | None, world_size: int
) -> None:
    shards = opened(f"s3://bucket/set/{PATTERN}", cache_gb)
    order = epoch_order(shards.samples, 0, 0)
    trained, evaluated = [], []
    for rank in range(world_size):
        with ShardLoader(shards, batch_size=4) as loader:
            batches = loader.batches(train_batches(order, world_size, rank, world_size))
            trained.append([key for batch in batches for key in batch.keys])
            batches = loader.batches(eval_batches(len(KEYS), 4, rank, world_size))
            evaluated += [key for batch in batches for key in batch.keys]
    assert {len(keys) for keys in trained} == {len(KEYS) // world_size}
    assert len({key for keys in trained for key in keys}) == len(KEYS) // world_size * world_size
    assert evaluated == KEYS


@BOUNDS
def test_sets_with_equal_names_are_kept_apart_and_every_epoch_has_its_own_order(
    packed: Path, tmp_path: Path, s3: S3Server, cache_gb: float | None
) -> None:
    s3.buckets.add("other")
    others = [put(tmp_path / "other", s3, "other/set", seed=1), put(tmp_path / "deep", s3, "bucket/deep/set", seed=2)]
    folders = dict(zip(("bucket/set", "other/set", "bucket/deep/set"), (packed, *others), strict=True))
    sets = {where: opened(f"s3://{where}/{PATTERN}", cache_gb) for where in folders}
    for where, folder in folders.items():
        local = opened(str(folder), None)
        epochs = [epoch(sets[where], number) for number in range(3)]
        assert epochs == [epoch(local, number) for number in range(3)]
        assert len({tuple(key for key, _ in one) for one in epochs}) == 3
        assert epoch(opened(f"s3://{where}/{PATTERN}", cache_gb), 1) == epochs[1]


@contextmanager
def changes_in(*folders: Path) -> Iterator[list[str]]:
    """The names of files that are made, written, renamed or removed in `folders` meanwhile, as inotify tells."""
    libc, found = ctypes.CDLL(None, use_errno=True), list[str]()
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    changing = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800  # not: open, read, close
    try:
        for folder in folders:
            assert libc.inotify_add_watch(descriptor, os.fsencode(folder), changing) >= 0
        yield found
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            data = b""
        while data:
            length = struct.unpack_from("iIII", data)[3]
            found.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
    finally:
        os.close(descriptor)


def test_files_outside_the_cache_are_not_touched_when_the_cache_is_emptied(
    packed: Path, tmp_path: Path, s3: S3Server
) -> None:
    """Local shards of the same names, a cache file that is a link to one, and files of others beside the cache."""
    url = f"s3://bucket/set/{PATTERN}"
    parts = Path(os.environ["XDG_CACHE_HOME"], "relic", "parts")
    foreign = parts / "0123456789abcdef"
    foreign.mkdir(parents=True)
    for name in ("train-000000.tar", "train-000009.tar", "notes.txt"):
        (foreign / name).write_text("mine")
    opened(url, 1)
    wait_until(lambda: len(cached_tars()) == len(COUNTS) + 2)
    link = next(path for path in cached_tars() if path.parent != foreign)
    (link.parent / "notes.txt").write_text("mine")
    link.unlink()
    link.symlink_to(packed / link.name)
    local = epoch(opened(str(packed), None))
    with changes_in(packed, foreign, tmp_path) as changed:
        assert epoch(opened(url, 1e-9)) == local
        assert epoch(opened(str(packed), None)) == local
        mixed = f"{{{packed}/train-000000.tar,s3://bucket/set/train-000001.tar}}"
        with pytest.raises(InputError, match="--shards"):
            epoch(opened(mixed, 1e-9))
    assert changed == []
    assert [path.parent for path in cached_tars()] == [foreign] * 2
    assert (link.parent / "notes.txt").read_text() == "mine"
    with changes_in(packed) as changed:
        (packed / "train-000000.tar").touch()
    assert changed == ["train-000000.tar"]


READ = """
import sys, time
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards
shards = resolve_shards(sys.argv[1], "train", room=CacheRoom(1))
with ShardLoader(shards, batch_size=4) as loader:
    for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1)):
        print(batch.keys[0], flush=True)
        time.sleep(60)
"""


def test_what_a_killed_reader_had_open_is_removed_like_anything_else(packed: Path) -> None:
    url = f"s3://bucket/set/{PATTERN}"
    opened(url, 1)
    wait_until(lambda: len(cached_tars()) == len(COUNTS))
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == f"{KEYS[0]}\n"
        readers[0].send_signal(signal.SIGKILL)
        readers[0].wait(10)
        assert sorted(key for key, _ in epoch(opened(url, 1e-9))) == KEYS
        assert not cached_tars()
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


@BOUNDS
def test_answers_that_are_cut_at_random_bytes_lose_and_repeat_no_sample(tmp_path: Path, cache_gb: float | None) -> None:
    folder = tmp_path / "packed"
    write_shards(folder, counts=COUNTS, side=64)
    local, randomness = epoch(opened(str(folder), None)), random.Random(5)
    with serve(folder) as server:
        server.versions = {path.name: '"1"' for path in folder.iterdir()}
        lock, answers, cuts = threading.Lock(), 0, 0

        def cut_one_in_three(handler: BaseHTTPRequestHandler) -> None:
            nonlocal answers
            with lock:
                answers += 1
                left = randomness.randrange(1, 2000) if answers % 3 == 0 else None
            write = handler.wfile.write

            def write_some(data: bytes) -> int:
                nonlocal cuts
                if left is None or len(data) < 2000:
                    return write(data)
                cuts += 1
                handler.close_connection = True
                return write(data[:left])

            handler.wfile.write = write_some  # type: ignore[method-assign, assignment]
            ShardServer.answer(server, handler)

        server.answer = cut_one_in_three  # type: ignore[method-assign]
        shards = opened(f"{server.url}/{PATTERN}", cache_gb)
        assert epoch(shards) == local
        assert epoch(shards, 1)[0] != local[0]
        assert cuts > 0


def test_samples_that_are_not_in_the_cache_are_asked_for_many_at_a_time(tmp_path: Path) -> None:
    """No answer is sent before eight requests have come: one after the other would wait for ever."""
    folder = tmp_path / "packed"
    write_shards(folder, counts=(20, 20), side=64)
    with serve(folder) as server:
        server.versions = {path.name: '"1"' for path in folder.iterdir()}
        together, gated = threading.Barrier(8, timeout=20), [0]

        def gate(handler: BaseHTTPRequestHandler) -> None:
            size = np.diff([int(place) for place in (handler.headers["Range"] or "=0-0").split("=")[1].split("-")])
            if size > 10_000:
                with lock:
                    gated[0] += 1
                    waits = gated[0] <= 40
                if waits:
                    together.wait()
            ShardServer.answer(server, handler)

        lock = threading.Lock()
        shards = opened(f"{server.url}/train-{{000000..000001}}.tar", 1e-9)
        server.answer = gate  # type: ignore[method-assign]
        assert len({key for key, _ in epoch(shards)}) == 40
        assert gated[0] == 40
