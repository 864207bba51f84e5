"""Every way of reading gives the samples that tarfile and numpy find, and names damage in the same way."""

import ctypes
import errno
import io
import mmap
import os
import tarfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import xxhash
from PIL import Image

from relic.errors import InputError
from relic.launch import Ranks
from relic.loader import direct, reading
from relic.loader.direct import direct_unit
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.loader.reading import plan_reading
from relic.options import Encoding, Verify
from relic.shards.index import IndexRecord, index_path, read_records, write_index
from relic.shards.manifest import Manifest, ShardInfo, write_manifest
from relic.shards.shard_set import ShardSet, open_shard_set
from tests.conftest import ShardFactory, a_packing, encode

SIDES = {"rows of whole sectors": 32, "rows of no whole sectors": 33}
WAYS = ("through the cache", "direct", "direct in pages", "refused", "no answer from the cache")


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system, by what it answers."""
    if request.param == "direct in pages":  # a drive with sectors of 4,096 bytes
        monkeypatch.setattr(direct, "_told_unit", lambda descriptor: 4096)
    if request.param in ("refused", "no answer from the cache"):
        refuse(monkeypatch, no_wait=request.param == "no answer from the cache")
    return str(request.param)


def refuse(monkeypatch: pytest.MonkeyPatch, *, no_wait: bool) -> None:
    """Refuse direct reads; with `no_wait` also reads that may not wait."""
    system_open, system_preadv = os.open, os.preadv

    def open_(path: str, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_open(path, flags, *more)

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags and no_wait:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return system_preadv(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)


def drop_from_cache(shards: ShardSet) -> None:
    for tar in shards.tars:
        with tar.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def old_shards(folder: Path, counts: Sequence[int], side: int, *, fortran: bool = False) -> None:
    """Raw shards as relic packed them before: `.npy` headers of 128 bytes, so pixels begin anywhere.

    `fortran`: the arrays of every third sample are in Fortran order.
    """
    rng = np.random.default_rng(5)
    infos = []
    for number, count in enumerate(counts):
        tar, records = folder / f"train-{number:06d}.tar", []
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
            for place in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                payload = encode(np.asfortranarray(pixels) if fortran and place % 3 == 2 else pixels, "raw")
                member = tarfile.TarInfo(f"old{number}-{place}.npy")
                member.size = len(payload)
                digest = xxhash.xxh3_64_intdigest(payload)
                records.append(IndexRecord(archive.offset + 512, len(payload), digest, f"old{number}-{place}"))
                archive.addfile(member, io.BytesIO(payload))
        write_index(index_path(tar), records, tar.stat().st_size)
        infos.append(ShardInfo(tar.name, count, tar.stat().st_size, "0" * 64))
    write_manifest(folder, Manifest(a_packing(width=side, height=side), tuple(infos), sum(counts), 0))


def expected(folder: Path, encoding: Encoding) -> list[tuple[str, bytes]]:
    """Keys and pixels, read by tarfile and the decoders."""
    found = []
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                stored = archive.extractfile(member)
                assert stored is not None
                payload = stored.read()
                if encoding == "raw":
                    pixels = np.load(io.BytesIO(payload))
                elif encoding == "jpg":
                    pixels = simplejpeg.decode_jpeg(payload, "RGB")
                else:
                    pixels = np.asarray(Image.open(io.BytesIO(payload)))
                found.append((member.name.split(".")[0], pixels.tobytes()))
    return found


def read(
    shards: ShardSet, way: str, batch_size: int = 4, io_threads: int = 5, epoch: int = 1, *, verify: Verify = "always"
) -> list[tuple[str, bytes]]:
    """The samples of an epoch. With `verify="first"` the epoch is read before, so that nothing is checked any more."""
    order = epoch_order(shards.samples, 0, epoch)
    with ShardLoader(
        shards,
        batch_size=batch_size,
        threads=2,
        io_threads=io_threads,
        direct="off" if way == "through the cache" else "on",
        verify=verify,
    ) as loader:
        if verify == "first":
            deque(loader.batches(train_batches(order, batch_size, 0, 1)), maxlen=0)
        return [
            (key, image.numpy().tobytes())
            for batch in loader.batches(train_batches(order, batch_size, 0, 1))
            for key, image in zip(batch.keys, batch.images, strict=True)
        ]


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("layout", ["raw", "jpg", "png", "old raw", "mixed raw"])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_every_way_reads_what_tarfile_reads(
    tmp_path: Path, make_shards: ShardFactory, way: str, layout: str, side: int
) -> None:
    encoding: Encoding = "raw" if layout.endswith("raw") else layout  # type: ignore[assignment]
    if layout in ("old raw", "mixed raw"):
        old_shards(tmp_path, (9, 7), side, fortran=layout == "mixed raw")
    else:
        make_shards(tmp_path, counts=(9, 7), side=side, encoding=encoding)
    shards = open_shard_set(tmp_path, "train")
    samples = expected(tmp_path, encoding)
    in_order = [samples[number] for number in epoch_order(shards.samples, 0, 1)[:].tolist()]
    for cold in (True, False):
        if cold:
            drop_from_cache(shards)
        assert read(shards, way) == in_order
        assert read(shards, way, verify="first") == in_order


@pytest.mark.parametrize("io_threads", [1, 3, 40])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_order_does_not_depend_on_reads_in_flight(
    tmp_path: Path, make_shards: ShardFactory, io_threads: int, batch_size: int
) -> None:
    make_shards(tmp_path, counts=(31, 33), side=32)
    shards = open_shard_set(tmp_path, "train")
    samples = expected(tmp_path, "raw")
    in_order = [samples[number] for number in epoch_order(shards.samples, 0, 2)[:].tolist()]
    assert read(shards, "direct", batch_size, io_threads, epoch=2) == in_order


@pytest.mark.timeout(10)
@pytest.mark.parametrize("encoding", ["raw", "jpg", "png"])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_flipped_and_cut_bytes_are_named_on_every_way(
    tmp_path: Path, make_shards: ShardFactory, way: str, encoding: Encoding
) -> None:
    make_shards(tmp_path, counts=(3, 6), side=48, encoding=encoding)
    shards = open_shard_set(tmp_path, "train")
    tar = tmp_path / "train-000001.tar"
    record = read_records(index_path(tar))[4]
    whole = tar.read_bytes()
    for place in (int(record["offset"]) + 3, int(record["offset"] + record["size"]) - 5):
        data = bytearray(whole)
        data[place] ^= 1
        tar.write_bytes(data)
        drop_from_cache(shards)
        with pytest.raises(InputError, match=r"train-000001\.tar: sample train00007: its bytes changed"):
            read(shards, way, batch_size=1)
    tar.write_bytes(whole)
    with ShardLoader(shards, batch_size=1, direct="off" if way == "through the cache" else "on") as loader:
        assert next(loader.batches([np.array([3])])).keys == ["train00003"]
        left = int(record["offset"]) + 100
        os.truncate(tar, left)
        size = int(record["size"])
        with pytest.raises(
            InputError, match=rf"sample train00007: {size} bytes expected, 100 found; the shard was cut"
        ):
            list(loader.batches([np.array([7])]))


def test_direct_reads_go_into_the_batch_and_leave_no_page_in_the_cache(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of whole sectors of shards that relic packs are not copied; the page cache stays as it was."""
    make_shards(tmp_path, counts=(8,), side=32)
    shards = open_shard_set(tmp_path, "train")
    if direct_unit(shards.tars[0]) != 512:
        pytest.skip("this file system takes no direct reads of sectors")
    copies: list[object] = []
    monkeypatch.setattr(np, "copyto", lambda *arrays: copies.append(arrays))
    drop_from_cache(shards)
    read(shards, "direct")
    assert not copies
    assert cached_pages(shards.tars[0]) == set()


def test_where_direct_reads_are_refused_only_what_was_cached_before_stays_cached(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, counts=(16,), side=64)  # of 4 pages each
    shards = open_shard_set(tmp_path, "train")
    drop_from_cache(shards)
    if cached_pages(shards.tars[0]):
        pytest.skip("this file system does not drop pages")
    first = read_records(shards.indexes[0])[2]
    inner = set(range(int(first["offset"]) // 4096 + 1, int(first["offset"] + first["size"]) // 4096))
    refuse(monkeypatch, no_wait=False)
    for _ in range(5):  # the kernel may keep a page that two threads read, and drop one for which it would have to wait
        drop_from_cache(shards)
        with shards.tars[0].open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), int(first["size"]), int(first["offset"]))
        before = cached_pages(shards.tars[0])
        assert before
        assert len(read(shards, "refused")) == 16
        after = cached_pages(shards.tars[0])
        if inner <= after <= before:
            break
    assert inner <= after <= before


def cached_pages(tar: Path) -> set[int]:
    """The pages of a file that are in the page cache, as mincore tells."""
    with (
        tar.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        told = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        byte = ctypes.c_ubyte.from_buffer(view)
        done = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(byte)), ctypes.c_size_t(len(view)), told)
        del byte
    assert done == 0
    return {page for page, state in enumerate(told) if state & 1}


def test_as_many_shards_go_through_the_cache_as_fit(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, counts=(10,) * 4, side=32)
    shards = open_shard_set(tmp_path, "train")
    size = shards.tar_bytes[0]
    assert shards.tar_bytes == tuple(tar.stat().st_size for tar in shards.tars) == (size,) * 4
    monkeypatch.setattr(reading, "is_in_memory", lambda path: False)
    for fitting, words in ((0, "past the page cache"), (3, "75% through the page cache"), (4, "they fit")):
        monkeypatch.setattr(reading, "available_memory", lambda: int((fitting + 0.5) * size / 0.75))  # noqa: B023
        planned = plan_reading(shards, "auto", 0, 2)
        assert planned.cached == fitting
        assert words in str(planned) and "32 reads in flight" in str(planned)
        assert plan_reading(shards, "on", 0, 2).cached == 0
        assert plan_reading(shards, "off", 0, 2).cached == 4
    refuse(monkeypatch, no_wait=False)
    assert "the file system refuses direct reads" in str(plan_reading(shards, "on", 0, 2))


def test_shards_in_memory_are_read_as_they_are(
    tmp_path: Path, make_shards: ShardFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, counts=(4,), side=32)
    monkeypatch.setattr(reading, "is_in_memory", lambda path: True)
    shards = open_shard_set(tmp_path, "train")
    planned = plan_reading(shards, "on", 0, 2)
    assert (planned.cached, planned.in_flight) == (1, 2)
    assert "are in memory" in str(planned)


@pytest.mark.parametrize(
    ("processes", "io_threads", "cores", "in_flight"),
    [(1, 0, 2, 32), (4, 0, 2, 8), (8, 0, 26, 26), (1, 5, 2, 5), (1, 1, 4, 4)],
)
def test_reads_in_flight_are_divided_among_processes(
    tmp_path: Path,
    make_shards: ShardFactory,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    io_threads: int,
    cores: int,
    in_flight: int,
) -> None:
    make_shards(tmp_path, counts=(4,), side=32)
    monkeypatch.setattr(reading, "read_ranks", lambda: Ranks(size=processes, local_size=processes))
    monkeypatch.setattr(reading, "is_in_memory", lambda path: False)
    assert plan_reading(open_shard_set(tmp_path, "train"), "auto", io_threads, cores).in_flight == in_flight
