import hashlib
import io
import json
import math
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import xxhash
from numpy.typing import NDArray

from relic.errors import InputError
from relic.shards.index import index_path, read_index_header, read_records
from relic.shards.npy import npy_header
from relic.shards.writer import ShardWriter


def npy(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    crops = {f"key-{number}_": rng.integers(0, 256, (7, 5, 3), dtype=np.uint8) for number in range(4)}
    path = tmp_path / "train-000000.tar"
    with ShardWriter(path) as writer:
        for number, (key, crop) in enumerate(crops.items()):
            writer.add(key, ".npy", npy_header(7, 5) + crop.tobytes(), {"source": f"{number}.jpg"})
    assert writer.info is not None
    assert writer.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (writer.info.bytes, writer.info.samples) == (path.stat().st_size, 4)
    return path, crops


def test_the_raw_header_is_numpy_s_own() -> None:
    for shape in ((1, 1, 3), (224, 224, 3), (8192, 4096, 3)):
        assert npy(np.zeros(shape, np.uint8))[:128] == npy_header(*shape[:2])
        for length in (128, 192, 512, 4096):
            header = npy_header(*shape[:2], length)
            assert len(header) == length
            assert np.load(io.BytesIO(header + bytes(math.prod(shape)))).shape == shape


def test_pixels_begin_at_multiples_of_4096_bytes(tmp_path: Path) -> None:
    """The `.npy` header before them is as long as that takes. No payload has bytes after its pixels."""
    rng = np.random.default_rng(1)
    for number, side in enumerate((5, 36, 37, 38, 224)):
        path = tmp_path / f"train-{number:06d}.tar"
        crops = [rng.integers(0, 256, (side, side + 1, 3), dtype=np.uint8) for _ in range(9)]
        with ShardWriter(path) as writer:
            for place, crop in enumerate(crops):
                writer.add(str(place), ".npy", npy(crop), {})
        with tarfile.open(path, "r:") as archive:
            for member, crop in zip(archive.getmembers(), crops, strict=True):
                pixels_offset = member.offset_data + member.size - crop.nbytes
                assert pixels_offset % 4096 == 0
                assert path.read_bytes()[pixels_offset : pixels_offset + crop.nbytes] == crop.tobytes()
                assert 128 <= member.size - crop.nbytes <= 4096
        assert path.stat().st_size <= 9 * (-(-crops[0].nbytes // 4096) + 1) * 4096 + 1024


def test_what_is_no_npy_file_of_numpy_is_stored_as_it_is(tmp_path: Path) -> None:
    fortran = io.BytesIO()
    np.lib.format.write_array(fortran, np.zeros((4, 4, 3), np.uint8), version=(2, 0))
    payloads = [b"", b"x", b"\x93NUMPY", fortran.getvalue(), npy(np.zeros((4, 4, 3), np.uint8))]
    with ShardWriter(tmp_path / "train-000000.tar") as writer:
        for number, payload in enumerate(payloads):
            writer.add(str(number), ".jpg" if number == 4 else ".npy", payload, {})
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        for member, payload in zip(archive.getmembers(), payloads, strict=True):
            stored = archive.extractfile(member)
            assert stored is not None and stored.read() == payload


def test_tarfile_reads_the_same_keys_and_pixels(shard: tuple[Path, dict[str, NDArray[Any]]]) -> None:
    path, crops = shard
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{key}.npy" for key in crops]
        for member, crop in zip(members, crops.values(), strict=True):
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            payload = archive.extractfile(member)
            assert payload is not None
            np.testing.assert_array_equal(np.load(io.BytesIO(payload.read())), crop)
    assert path.read_bytes()[257:265] == b"ustar\x0000"
    assert not path.read_bytes().count(b"PaxHeader")


def test_gnu_tar_lists_and_unpacks_it(shard: tuple[Path, dict[str, NDArray[Any]]], tmp_path: Path) -> None:
    path, crops = shard
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [f"{key}.npy" for key in crops]
    assert not listed.stderr
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", path, "-C", tmp_path / "out"], check=True)
    for key, crop in crops.items():
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{key}.npy"), crop)


def test_webdataset_reads_the_same_keys_and_pixels(shard: tuple[Path, dict[str, NDArray[Any]]]) -> None:
    path, crops = shard
    found = {
        sample["__key__"]: sample["npy"]
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode()
    }
    assert list(found) == list(crops)
    for key, crop in crops.items():
        np.testing.assert_array_equal(found[key], crop)


def test_the_index_points_at_every_payload(shard: tuple[Path, dict[str, NDArray[Any]]]) -> None:
    path, crops = shard
    data = path.read_bytes()
    header = read_index_header(index_path(path))
    assert (header.samples, header.tar_bytes) == (4, len(data))
    raw = index_path(path).read_bytes()
    assert struct.unpack_from("<8sIIQQQ", raw) == (
        b"RELICIDX",
        1,
        header.record_bytes,
        4,
        len(data),
        header.records_xxh3,
    )
    assert header.records_xxh3 == xxhash.xxh3_64_intdigest(raw[64:])
    for record, (key, crop) in zip(read_records(index_path(path)), crops.items(), strict=True):
        payload = data[int(record["offset"]) : int(record["offset"]) + int(record["size"])]
        assert payload.endswith(crop.tobytes())
        np.testing.assert_array_equal(np.load(io.BytesIO(payload)), crop)
        assert record["key"].decode() == key
        assert int(record["xxh3"]) == xxhash.xxh3_64_intdigest(payload)
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert lines == [{"key": key, "source": f"{number}.jpg"} for number, key in enumerate(crops)]


@pytest.mark.parametrize(("key", "message"), [("a", "two samples"), ("k" * 81, "longer than 80")])
def test_a_bad_key_leaves_nothing_behind(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(InputError, match=message), ShardWriter(tmp_path / "train-000000.tar") as writer:
        writer.add("a", ".npy", b"x", {})
        writer.add(key, ".npy", b"x", {})
    assert not list(tmp_path.iterdir())


def test_no_tar_stands_when_its_index_cannot_be_written(tmp_path: Path) -> None:
    index_path(tmp_path / "train-000000.tar").mkdir()  # in the way of the rename
    with pytest.raises(OSError, match="irectory"), ShardWriter(tmp_path / "train-000000.tar") as writer:
        writer.add("a", ".npy", b"x", {})
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.index"]
