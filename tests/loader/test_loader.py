"""The loader, compared with tarfile and the decoders, and on damaged shards."""

import itertools
import os
import resource
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from relic.arrays import Pixels
from relic.errors import InputError
from relic.loader import decode, open_shard
from relic.loader.decode import SampleDecoder, Seconds
from relic.loader.device_feed import feed_device
from relic.loader.loader import _PREFETCH_BYTES, ShardLoader
from relic.loader.order import Indices, epoch_order, eval_batches, train_batches
from relic.shards import shard_set
from relic.shards.index import index_path, read_records
from relic.shards.shard_set import open_shard_set
from tests.conftest import ShardFactory


def read_all(folder: Path, threads: int = 2, batch_size: int = 3, epoch: int | None = None) -> list[tuple[str, bytes]]:
    shards = open_shard_set(folder, "train")
    plan: Iterable[Indices] = eval_batches(shards.num_samples, batch_size, 0, 1)
    if epoch is not None:
        plan = train_batches(epoch_order(shards.samples, 0, epoch), batch_size, 0, 1)
    with ShardLoader(shards, batch_size=batch_size, threads=threads) as loader:
        return [
            (key, image.numpy().tobytes())
            for batch in loader.batches(plan)
            for key, image in zip(batch.keys, batch.images, strict=True)
        ]


def late_byte_of(tar: Path, place: int) -> int:
    """Where one of the last bytes of a sample is in its shard."""
    record = read_records(index_path(tar))[place]
    return int(record["offset"]) + int(record["size"]) - 5


@pytest.mark.parametrize("encoding", ["raw", "jpg", "png"])
def test_pixels_and_keys_are_what_tar_holds(tmp_path: Path, make_shards: ShardFactory, encoding: str) -> None:
    packed = make_shards(tmp_path, counts=(4, 0, 7), side=48, encoding=encoding)
    expected = []
    for tar in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                stored = archive.extractfile(member)
                assert stored is not None
                key, payload = member.name.split(".")[0], stored.read()
                pixels = simplejpeg.decode_jpeg(payload, "RGB") if encoding == "jpg" else packed[key]
                expected.append((key, pixels.tobytes()))
    assert read_all(tmp_path) == expected


def test_order_does_not_depend_on_threads(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(31, 20), side=32)
    one, four = (read_all(tmp_path, threads, batch_size=4, epoch=2) for threads in (1, 4))
    assert one == four
    assert one != read_all(tmp_path, 1, batch_size=4, epoch=3)


def test_a_batch_and_the_one_before_stay_intact(tmp_path: Path, make_shards: ShardFactory) -> None:
    packed = make_shards(tmp_path, counts=(40,), side=32)
    shards = open_shard_set(tmp_path, "train")
    before = None
    with ShardLoader(shards, batch_size=2, threads=3) as loader:
        for batch in loader.batches(eval_batches(40, 2, 0, 1)):
            for held in filter(None, (before, batch)):
                for key, image in zip(held.keys, held.images, strict=True):
                    assert np.array_equal(image.numpy(), packed[key])
            before = batch


def test_memory_is_a_ring_of_reused_buffers(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relic.loader.loader._PREFETCH_BYTES", 0)
    make_shards(tmp_path, counts=(60,), side=32)
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2, threads=2) as loader:
        addresses = {batch.images.data_ptr() for batch in loader.batches(eval_batches(60, 2, 0, 1))}
    assert len(addresses) == 5


@pytest.mark.parametrize(("encoding", "start"), [("raw", 0), ("jpg", 16), ("png", 16)])
def test_where_rows_begin(tmp_path: Path, make_shards: ShardFactory, encoding: str, start: int) -> None:
    """Raw crops at a page, for direct reads; others not at 32 bytes, where libjpeg-turbo writes past the cache."""
    make_shards(tmp_path, counts=(6,), side=32, encoding=encoding)
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=4) as loader:
        first = next(loader.batches([np.arange(4)]))
    assert first.images.data_ptr() % 4096 == start


@pytest.mark.parametrize("wait", [True, False])
def test_batches_are_cut_into_tasks_for_all_threads_while_reads_wait(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """1,024 rows are ahead: 32 tasks for 16 reads in flight. Batches whose samples are in memory are cut into few."""
    monkeypatch.setattr("relic.loader.loader._PREFETCH_BYTES", 0)
    sizes: list[int] = []
    fill = SampleDecoder.fill

    def spy(self: SampleDecoder, rows: Pixels, samples: Indices) -> tuple[list[str], Seconds]:
        sizes.append(len(samples))
        if wait:
            loader._threads.lend_core()
            loader._threads.take_core()
        return fill(self, rows, samples)

    monkeypatch.setattr(SampleDecoder, "fill", spy)
    make_shards(tmp_path, counts=(256,), side=16)
    for tar in tmp_path.glob("*.tar"):
        tar.read_bytes()
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=256, threads=2, io_threads=16) as loader:
        assert sum(len(batch.keys) for batch in loader.batches([np.arange(256)] * 12)) == 12 * 256
    assert sizes.count(32) >= 32  # of the first four batches it is not known
    assert set(sizes) == ({32} if wait else {32, 64})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("batch_size", [1, 3, 16, 64, 512])
def test_as_many_pixels_are_ahead_whatever_the_batch(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """512 crops of 224x224 or more, so that small batches do not wait for a pause of the storage. Here with 16x16."""
    monkeypatch.setattr("relic.loader.loader._PREFETCH_BYTES", _PREFETCH_BYTES // (224 // 16) ** 2)
    make_shards(tmp_path, counts=(300,), side=16)
    asked: list[int] = []

    def plan() -> Iterator[Indices]:
        for first in itertools.count(0, batch_size):
            asked.append(first)
            yield np.arange(first, first + batch_size) % 300

    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=batch_size, threads=2) as loader:
        batches = loader.batches(plan())
        for given in range(1, 4):
            keys = next(batches).keys
            assert keys == [f"train{n % 300:05d}" for n in range((given - 1) * batch_size, given * batch_size)]
            ahead = loader._ahead
            while len(asked) < given - 1 + ahead:  # by the threads
                time.sleep(0.001)
            assert len(asked) == given - 1 + ahead
            assert ahead >= 4 and 512 <= ahead * batch_size <= max(557 + batch_size, 4 * batch_size)
        batches.close()  # type: ignore[attr-defined]


def test_an_iterator_dropped_early_leaves_the_loader_usable(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(20,), side=32)
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2, threads=2) as loader:
        first = loader.batches(eval_batches(20, 2, 0, 1))
        next(first)
        first.close()  # type: ignore[attr-defined]
        keys = [key for batch in loader.batches(eval_batches(20, 2, 0, 1)) for key in batch.keys]
    assert keys == [f"train{number:05d}" for number in range(20)]


def test_an_error_comes_at_its_batch_and_leaves_the_loader_usable(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(20,), side=32)
    tar = tmp_path / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[late_byte_of(tar, 7)] ^= 1
    tar.write_bytes(data)
    keys: list[str] = []
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2, threads=2) as loader:
        with pytest.raises(InputError, match="sample train00007"):
            keys += (key for batch in loader.batches(eval_batches(20, 2, 0, 1)) for key in batch.keys)
        assert keys == [f"train{number:05d}" for number in range(6)]
        assert len(list(loader.batches([np.arange(8, 10), np.arange(10, 12)]))) == 2


@pytest.mark.timeout(5)
@pytest.mark.parametrize("encoding", ["raw", "jpg", "png"])
def test_a_flipped_byte_names_shard_and_sample(tmp_path: Path, make_shards: ShardFactory, encoding: str) -> None:
    make_shards(tmp_path, counts=(3, 6), side=48, encoding=encoding)
    tar = tmp_path / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[late_byte_of(tar, 4)] ^= 1
    tar.write_bytes(data)
    with pytest.raises(InputError, match=r"train-000001\.tar: sample train00007: its bytes changed"):
        read_all(tmp_path)


def test_a_shard_of_a_large_set_is_checked_when_its_first_sample_is_read(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_set, "_CHECKED_AT_START", 1)
    make_shards(tmp_path, counts=(3, 3), side=32)
    (tmp_path / "train-000001.tar").unlink()
    shards = open_shard_set(tmp_path, "train")
    with ShardLoader(shards, batch_size=3) as loader:
        batches = loader.batches(eval_batches(shards.num_samples, 3, 0, 1))
        assert next(batches).keys == ["train00000", "train00001", "train00002"]
        with pytest.raises(InputError, match=r"train-000001\.tar: the shard is missing; run the same make_shards\.py"):
            next(batches)


def test_verify_off_and_first(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(4,), side=48)
    tar = tmp_path / "train-000000.tar"
    shards = open_shard_set(tmp_path, "train")
    offset = late_byte_of(tar, 2)
    with (
        ShardLoader(shards, batch_size=4, verify="first") as first,
        ShardLoader(shards, batch_size=4, verify="off") as off,
        ShardLoader(shards, batch_size=4, verify="always") as always,
    ):
        plan = list(eval_batches(4, 4, 0, 1))
        for loader in (first, always):
            assert len(list(loader.batches(plan))) == 1
        with tar.open("r+b") as file:
            file.seek(offset)
            flipped = file.read(1)[0] ^ 1
            file.seek(offset)
            file.write(bytes([flipped]))
        assert len(list(first.batches(plan))) == 1
        assert len(list(off.batches(plan))) == 1
        with pytest.raises(InputError, match="train00002"):
            list(always.batches(plan))


def test_each_sample_is_verified_once(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, by several threads, and also when its shard was closed meanwhile."""
    make_shards(tmp_path, counts=(9, 12), side=32, encoding="jpg")
    shards = open_shard_set(tmp_path, "train")
    compared: list[str] = []
    monkeypatch.setattr(decode, "_compare", lambda digest, shard, place: compared.append(shard.key(place)))
    with ShardLoader(shards, batch_size=7, threads=3, verify="first") as loader:
        for epoch in range(3):
            for batch in loader.batches(train_batches(epoch_order(shards.samples, 0, epoch), 7, 0, 1)):
                assert set(batch.keys) <= set(compared)
            loader._decoder._files._open.clear()
    assert sorted(compared) == [f"train{number:05d}" for number in range(21)]


@pytest.mark.timeout(5)
def test_a_shard_cut_under_a_running_loader_is_an_error(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(64,), side=48)
    tar = tmp_path / "train-000000.tar"
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=32, threads=1) as loader:
        batches = loader.batches(itertools.cycle(eval_batches(64, 32, 0, 1)))  # more than is read ahead of the cut
        next(batches)
        with tar.open("r+b") as file:
            file.truncate(2000)
        # A read that is under way at the cut may bring zeros in the place of what was cut off.
        faults = r"(.* the shard was cut|its bytes changed since it was packed)"
        with pytest.raises(InputError, match=rf"train-000000\.tar: sample train\d+: {faults}"):
            list(batches)


@pytest.mark.timeout(5)
def test_a_shard_cut_or_missing_at_the_start_is_an_error(tmp_path: Path, make_shards: ShardFactory) -> None:
    make_shards(tmp_path, counts=(4, 4), side=48)
    tar = tmp_path / "train-000001.tar"
    with tar.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"train-000001\.tar: cut or changed"):
        open_shard_set(tmp_path, "train")
    tar.unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar: the shard is missing"):
        open_shard_set(tmp_path, "train")


def test_feed_makes_floats_on_the_device(tmp_path: Path, make_shards: ShardFactory) -> None:
    packed = make_shards(tmp_path, counts=(5,), side=32)
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2) as loader:
        batches = loader.batches(eval_batches(5, 2, 0, 1))
        fed = [
            (batch.keys, batch.images.clone())
            for batch in feed_device(batches, torch.device("cpu"), lambda images: images.float() / 255)
        ]
    assert [len(keys) for keys, _ in fed] == [2, 2, 1]
    for keys, images in fed:
        for key, image in zip(keys, images, strict=True):
            assert np.array_equal(np.rint(image.numpy() * 255), packed[key])


def test_shards_beyond_the_limit_of_open_files_are_read_too(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = make_shards(tmp_path, counts=(2,) * 6, side=16)
    budget = threading.Semaphore(3)
    monkeypatch.setattr(open_shard, "_descriptors", lambda: budget)
    before = len(os.listdir("/proc/self/fd"))
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2, threads=1) as loader:
        for _ in range(2):
            keys = [key for batch in loader.batches(eval_batches(12, 2, 0, 1)) for key in batch.keys]
            assert keys == list(packed)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    del loader
    assert budget._value == 3


@pytest.mark.parametrize(
    ("soft", "hard", "kept"), [(1024, 1024, 768), (256, 1 << 20, 3840), (64, 64, 0), (-1, -1, 3840)]
)
def test_the_limit_of_open_files_is_shared_and_raised(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, kept: int
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: raised.append(limits))
    assert open_shard._descriptors.__wrapped__()._value == kept
    assert raised == ([(4096, hard)] if soft == 256 else [])


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux")
def test_a_thread_at_work_never_takes_the_consumers_core(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[int] = []
    fill = SampleDecoder.fill

    def spy(self: SampleDecoder, rows: Pixels, samples: Indices) -> tuple[list[str], Seconds]:
        policies.append(os.sched_getscheduler(threading.get_native_id()))
        return fill(self, rows, samples)

    monkeypatch.setattr(SampleDecoder, "fill", spy)
    make_shards(tmp_path, counts=(7,), side=32)
    with ShardLoader(open_shard_set(tmp_path, "train"), batch_size=2) as loader:
        assert len(list(loader.batches(eval_batches(7, 2, 0, 1)))) == 4
    assert set(policies) == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
