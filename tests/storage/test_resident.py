"""A cache smaller than the set: what is in it, what is read from the server, and that it is never over its bound."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.shards import shard_set
from relic.shards.index import read_index_header
from relic.shards.manifest import ShardInfo
from relic.shards.shard_set import ShardSet
from relic.storage import download, objects, resident
from relic.storage.faults import NetworkError, PermanentError
from relic.storage.resident import CacheRoom, choose_residents
from relic.storage.spec import resolve_shards
from tests.conftest import write_shards
from tests.storage.http_shards import serve
from tests.storage.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (4, 3, 4, 2, 4, 3, 4, 4)
NAMES = [f"train-{number:06d}.tar" for number in range(len(COUNTS))]
PATTERN = f"s3://bucket/set/train-{{000000..{len(COUNTS) - 1:06d}}}.tar"
KEYS = [f"train{number:05d}" for number in range(sum(COUNTS))]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def packed(tmp_path: Path, s3: S3Server) -> Path:
    folder = tmp_path / "packed"
    write_shards(folder, counts=COUNTS, side=64)
    s3.put_folder("bucket/set", {path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


def size_of(names: list[str], folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in names)


def opened(cache_gb: float, spec: str = PATTERN) -> ShardSet:
    return resolve_shards(spec, "train", room=CacheRoom(cache_gb))


def keys_of(shards: ShardSet) -> list[str]:
    with ShardLoader(shards, batch_size=4, verify="always") as loader:
        return [key for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1)) for key in batch.keys]


def cached(pattern: str = "*.tar*") -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"], "relic", "parts").glob(f"*/{pattern}"))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def whole(packed: Path) -> list[str]:
    """The names of the cache's tars, which are those packed."""
    found = cached("*.tar")
    for tar in found:
        assert tar.read_bytes() == (packed / tar.name).read_bytes()
    return [tar.name for tar in found]


@given(st.lists(st.integers(0, 1 << 20), max_size=30), st.integers(0, 1 << 24))
def test_residents_fit_and_leave_no_room_for_another(sizes: list[int], room: int) -> None:
    shards = [ShardInfo(f"train-{n:06d}.tar", 1, size, "0" * 64) for n, size in enumerate(sizes)]
    chosen = choose_residents(shards, room)
    used = sum(-(-info.bytes // 4096) * 4096 for info in chosen)
    assert used <= room
    assert all(used + info.bytes > room - 4096 for info in shards if info not in chosen)
    assert set(choose_residents(shards[::-1], room)) == set(chosen)


def test_half_of_a_set_stays_and_the_rest_is_read_sample_by_sample(packed: Path, s3: S3Server) -> None:
    room = size_of(NAMES, packed) // 2
    shards = opened(room / 1e9)
    local = resolve_shards(str(packed), "train")
    assert shards.fingerprint == local.fingerprint
    assert keys_of(shards) == KEYS
    share = choose_names(packed, room)
    wait_until(lambda: whole(packed) == share)
    assert 0 < len(share) < len(NAMES)
    for epoch in range(2):
        s3.sent = 0
        order = epoch_order(shards.samples, 7, epoch, 0)
        with ShardLoader(shards, batch_size=3) as loader:
            batches = train_batches(order, 3, 0, 1, 0)
            keys = [key for batch in loader.batches(batches) for key in batch.keys]
        assert sorted(keys)[: len(keys)] == sorted(set(keys))
        assert len(keys) == len(KEYS) // 3 * 3
        rest = size_of([name for name in NAMES if name not in share], packed)
        assert 0 < s3.sent <= rest
    assert size_of(whole(packed), packed) <= room


def test_an_index_is_fetched_when_its_shard_is_first_needed(packed: Path, s3: S3Server) -> None:
    shards = opened(1e-9)
    assert not [name for name in s3.requests if name.endswith(".index")]
    with ShardLoader(shards, batch_size=4) as loader:
        assert next(loader.batches(iter([np.arange(7, 11)]))).keys == KEYS[7:11]
    indexes = {name: count for name, count in s3.requests.items() if name.endswith(".index")}
    assert indexes == {"GET bucket/set/train-000002.index": 1}
    assert keys_of(shards) == keys_of(opened(1e-9)) == KEYS
    assert all(s3.requests[f"GET bucket/set/{name.replace('tar', 'index')}"] == 1 for name in NAMES)


def test_an_index_that_does_not_fit_its_manifest_is_not_kept(packed: Path, s3: S3Server) -> None:
    name = "bucket/set/train-000001.index"
    right = s3.objects[name]
    for wrong, message in (
        (s3.objects["bucket/set/train-000000.index"], "does not fit the manifest beside it; pack the shards again"),
        (right[:-1] + b"x", "its bytes changed since it was written"),
        (b"<html>", "not an index that relic wrote"),
    ):
        s3.objects[name] = wrong
        with pytest.raises(InputError, match=rf"^s3://bucket/set/train-000001\.index: .*{message}"):
            keys_of(opened(1e-9))
    s3.objects[name] = right
    assert keys_of(opened(1e-9)) == KEYS


@pytest.mark.parametrize("most", [1, 4096])
def test_a_set_has_one_fingerprint_wherever_it_is(
    packed: Path, s3: S3Server, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_set, "_CHECKED_AT_START", most)
    infos = json.loads((packed / "train.json").read_text())["shards"]
    digest = hashlib.sha256("".join(f"{i['samples']}:{i['sha256']};" for i in infos).encode()).hexdigest()
    sets = [
        resolve_shards(str(packed), "train"),
        resolve_shards(f"{packed}/train-{{000000..{len(NAMES) - 1:06d}}}.tar", "train"),
        resolve_shards(PATTERN, "train"),
        opened(1e-9),
    ]
    assert {shards.fingerprint for shards in sets} == {f"tars:{digest}"}
    s3.requests.clear()
    assert not sets[-1].has_fingerprint(f"tars:{'0' * 64}")
    assert not s3.requests
    headers = [read_index_header(packed / name.replace("tar", "index")) for name in NAMES]
    earlier = "".join(f"{header.samples}:{header.records_xxh3:016x};" for header in headers)
    for shards in sets:  # as in checkpoints of relic before
        assert shards.has_fingerprint(digest)
        assert shards.has_fingerprint(hashlib.sha256(earlier.encode()).hexdigest())
        assert not shards.has_fingerprint("0" * 64)


def choose_names(packed: Path, room: int) -> list[str]:
    shards = json.loads((packed / "train.json").read_text())["shards"]
    return sorted(info.name for info in choose_residents([ShardInfo(**info) for info in shards], room))


def test_the_work_begins_before_a_shard_is_there(packed: Path, s3: S3Server) -> None:
    s3.stalls = {f"bucket/set/{name}" for name in NAMES}
    assert keys_of(opened(1)) == KEYS
    assert s3.stalled.wait(10)
    assert not whole(packed)


def test_no_room_reads_all_from_the_server(packed: Path, s3: S3Server) -> None:
    assert keys_of(opened(1e-9)) == KEYS
    assert not cached()
    assert all(s3.requests[f"GET bucket/set/{name.replace('tar', 'index')}"] == 1 for name in NAMES)


def test_a_set_that_may_not_be_read_is_told_as_such(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHERKEY")
    with pytest.raises(PermanentError, match=r"^s3://bucket/set/train-000000\.tar: .*not allow it \(HTTP 403"):
        opened(1)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_bound_below_one_shard_goes_with_any_window(
    packed: Path, s3: S3Server, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    shards = opened(1e-6)
    assert "--cache_gb 1e-06: has no room for a train shard, the smallest has 3.7e-05 GB" in caplog.text
    order = epoch_order(shards.samples, 7, 0, window)
    with ShardLoader(shards, batch_size=len(KEYS)) as loader:
        (batch,) = loader.batches(train_batches(order, len(KEYS), 0, 1, 0))
        assert sorted(batch.keys) == KEYS


def test_a_bound_that_the_disk_cannot_hold_is_refused(
    packed: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(packed / name).stat().st_size for name in NAMES]
    on_disk = sum(-(-size // 4096) * 4096 for size in sizes)
    free = types.SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(resident, "DISK_RESERVE_BYTES", (1 << 40) - on_disk + 1)
    with pytest.raises(
        InputError, match=rf"^--cache_gb 1: 0\.00 GB of train shards do not fit on the disk of {tmp_path}"
    ):
        resolve_shards(PATTERN, "train", room=CacheRoom(1, tmp_path / "cache"))
    monkeypatch.setattr(resident, "DISK_RESERVE_BYTES", (1 << 40) - on_disk)
    resolve_shards(PATTERN, "train", room=CacheRoom(1, tmp_path / "cache"))
    folder = tmp_path / "cache" / "parts"
    wait_until(lambda: sorted(path.name for path in folder.glob("*/*.tar")) == NAMES)
    assert not cached()
    monkeypatch.setattr(resident, "DISK_RESERVE_BYTES", 1 << 40)  # what is there needs no room
    assert keys_of(resolve_shards(PATTERN, "train", room=CacheRoom(1, tmp_path / "cache"))) == KEYS


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_full_disk_is_not_taken_for_a_missing_manifest(
    packed: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: int
) -> None:
    monkeypatch.setattr(download, "DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(InputError, match=r"^s3://bucket/set/train\.json: the disk of .* is full; .* by --cache_dir"):
        resolve_shards(PATTERN, "train", room=CacheRoom(1) if cache_gb else None)


def test_a_server_that_fails_meanwhile_is_one_line(packed: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PATIENT_RETRIES", 1)
    shards = opened(1e-9)
    s3.busy = Counter({f"bucket/set/{name}": 99 for name in NAMES})
    with pytest.raises(NetworkError, match=r"^s3://bucket/set/train-00000\d\.tar: .*in 2 attempts: .*HTTP 503"):
        keys_of(shards)
    s3.busy.clear()
    assert keys_of(shards) == KEYS
    s3.objects[f"bucket/set/{NAMES[3]}"] = bytes(100_000)  # replaced meanwhile
    with pytest.raises(InputError, match=r"^s3://bucket/set/train-000003\.tar: sample train\d+: "):  # not in the cache
        keys_of(shards)


START = """
import logging, sys, time
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards
shards = resolve_shards(sys.argv[1], "train", room=CacheRoom(float(sys.argv[2])))
print("open", flush=True)
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
while True:
    with ShardLoader(shards, batch_size=4) as loader:
        print(sum(len(batch.keys) for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1))), flush=True)
    time.sleep(0.01)
"""


def start(cache_gb: float, code: str = START) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, PATTERN, str(cache_gb)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.commands
def test_one_process_fetches_and_another_takes_over_when_it_is_killed(packed: Path, s3: S3Server) -> None:
    s3.stalls = {f"bucket/set/{name}" for name in NAMES}
    first = start(1, f"{START.partition('from relic.loader.loader')[0]}time.sleep(60)")  # it fetches, and reads nothing
    try:
        assert s3.stalled.wait(30)
        s3.requests.clear()
        shards = opened(1)
        time.sleep(1.5)
        assert not [name for name in NAMES if s3.requests[f"GET bucket/set/{name}"] > 1]  # parts of 1 byte
        s3.stalls.clear()
        first.send_signal(signal.SIGKILL)
        wait_until(lambda: whole(packed) == NAMES)
        assert keys_of(shards) == KEYS
        assert not cached("*.tmp")
    finally:
        first.kill()
        first.communicate()


@pytest.mark.commands
@pytest.mark.parametrize("stalls", [False, True])
def test_a_process_that_ends_while_shards_are_fetched_ends_as_usual(packed: Path, s3: S3Server, stalls: bool) -> None:
    """A thread that is in obstore while Python ends aborts the process."""
    s3.objects[f"bucket/set/{NAMES[0]}"] += bytes(50 << 20)  # refused at the length of the manifest, and sent again
    s3.stalls = {f"bucket/set/{name}" for name in NAMES[1:]} if stalls else set()
    code = START.partition("from relic.loader.loader")[0]
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", code, PATTERN, "1"], cwd=ROOT, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (0, "open\n"), ended.stderr


def test_a_smaller_bound_removes_what_is_no_longer_to_stay(packed: Path, s3: S3Server) -> None:
    shards = opened(1)
    wait_until(lambda: whole(packed) == NAMES)
    room = size_of(NAMES, packed) // 3
    opened(room / 1e9)
    assert whole(packed) == choose_names(packed, room)
    assert keys_of(shards) == KEYS  # a set that was open goes on from the server


def test_a_tar_in_the_cache_is_opened_once_and_read_to_the_end_though_removed(
    packed: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = opened(1)
    wait_until(lambda: whole(packed) == NAMES)
    system_open, names = os.open, []

    def open_(path: str, flags: int, *more: int) -> int:
        names.append(Path(path).name)
        return system_open(path, flags, *more)

    with ShardLoader(shards, batch_size=4) as loader:
        monkeypatch.setattr(os, "open", open_)
        for _ in range(3):
            assert sum(len(batch.keys) for batch in loader.batches(eval_batches(len(KEYS), 4, 0, 1))) == len(KEYS)
        assert sorted(name for name in names if name.endswith(".tar")) == NAMES
        for tar in cached("*.tar"):
            tar.unlink()
        s3.sent = 0
        assert [key for batch in loader.batches(eval_batches(len(KEYS), 4, 0, 1)) for key in batch.keys] == KEYS
        assert s3.sent == 0


def test_shards_packed_anew_replace_the_old_ones(packed: Path, s3: S3Server) -> None:
    opened(1)
    wait_until(lambda: whole(packed) == NAMES)
    shutil.rmtree(packed)
    write_shards(packed, counts=COUNTS, side=64, seed=5)
    s3.put_folder("bucket/set", {path.name: path.read_bytes() for path in packed.iterdir()})
    assert keys_of(opened(1)) == KEYS
    wait_until(lambda: [tar.name for tar in cached("*.tar")] == NAMES)
    assert whole(packed) == NAMES


def test_a_shard_that_is_not_as_the_manifest_says_is_not_kept(
    packed: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"bucket/set/{NAMES[2]}"
    s3.objects[name] = s3.objects[name][:-1] + b"x"
    opened(1)
    wait_until(lambda: "its samples are read from there" in caplog.text)
    assert "train-000002.tar: could not be fetched in 3 attempts: its bytes differ from the manifest" in caplog.text
    assert "; write the file there again; its samples" in caplog.text
    wait_until(lambda: whole(packed) == NAMES[:2] + NAMES[3:])


def test_the_cache_is_filled_after_a_fault_of_the_network(
    packed: Path, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was not there yet would be read from the server in every epoch."""
    monkeypatch.setattr(download, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(resident, "_AGAIN_SECONDS", 0.1)
    s3.busy = Counter({f"bucket/set/{name}": 4 for name in NAMES[1:]})  # more than a download asks
    opened(1)
    wait_until(lambda: whole(packed) == NAMES)
    assert "HTTP 503, SlowDown); trying again in 0 s" in caplog.text


def test_what_cannot_be_read_in_parts_is_refused(packed: Path, s3: S3Server) -> None:
    s3.objects["bucket/other/train-000000.tar"] = b"1"
    with serve(packed) as server, pytest.raises(PermanentError, match="does not send parts of a file"):
        opened(1, f"{server.url}/train-000000.tar")
    for spec, message in (
        (f"pipe:cat {packed}/train-000000.tar", "with --cache_gb, all shards are in one folder"),
        ("s3://bucket/{set,other}/train-000000.tar", "with --cache_gb, all shards are in one folder"),
        (
            "s3://bucket/other/train-000000.tar",
            r"--cache_gb needs shards of prep/make_shards\.py with their train\.json",
        ),
        ("s3://bucket/set/train-{000000..000009}.tar", r"train-000008\.tar is not in the manifest beside it"),
    ):
        with pytest.raises(InputError, match=rf"^--shards .*{message}"):
            opened(1, spec)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_bound_holds_for_four_processes_and_twenty_kills(packed: Path, s3: S3Server) -> None:
    """Looked at every 10 ms, as blocks of the disk."""
    room = size_of(NAMES, packed) // 2
    randomness = random.Random(3)
    most = 0
    processes = [start(room / 1e9) for _ in range(4)]
    try:
        for _ in range(20):
            end = time.monotonic() + randomness.uniform(0.2, 1.5)
            while time.monotonic() < end:
                used = 0
                for path in cached():
                    with suppress(FileNotFoundError):
                        used += path.stat().st_blocks * 512
                most = max(most, used)
                time.sleep(0.01)
            victim = processes.pop(randomness.randrange(4))
            victim.kill()
            victim.communicate()
            for tar in cached("*.tar")[:1]:
                tar.unlink(missing_ok=True)  # so that there is always something to fetch
            processes.append(start(room / 1e9))
        shards = opened(room / 1e9)
        assert keys_of(shards) == KEYS
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert 0 < most <= room
