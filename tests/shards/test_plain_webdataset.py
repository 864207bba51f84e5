"""Tars that webdataset and tarfile wrote: compared with webdataset's reading of them, and damaged."""

import io
import json
import logging
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.shards import index, tar_indexes
from relic.shards.image_header import Geometry, read_geometry
from relic.shards.index import index_path, read_index_header, read_records
from relic.shards.shard_set import open_shard_set
from tests.conftest import encode, write_shards

Members = list[tuple[str, bytes]]


def picture(seed: int, height: int = 32, width: int = 48) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tar(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(payload), 1.5 if kind == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(payload))


def simple(first: int, count: int) -> Members:
    return [(f"{number:04d}.png", encode(picture(number), "png")) for number in range(first, first + count)]


def read_all(folder: Path, split: str = "train") -> list[tuple[str, bytes]]:
    shards = open_shard_set(folder, split)
    with ShardLoader(shards, batch_size=4, threads=2) as loader:
        return [
            (key, image.numpy().tobytes())
            for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1))
            for key, image in zip(batch.keys, batch.images, strict=True)
        ]


def webdataset_reads(folder: Path) -> list[tuple[str, bytes]]:
    """The keys and pixels that webdataset reads from the same tars."""
    tars = sorted(map(str, folder.glob("*.tar")))
    found = []
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"):
        pixels = next(v for k, v in sample.items() if isinstance(v, np.ndarray) and v.ndim == 3)
        found.append((sample["__key__"], pixels.tobytes()))
    return found


def test_what_webdataset_wrote_is_read_as_it_reads_it(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=3, verbose=0) as sink:
        for number in range(8):
            sink.write(
                {"__key__": f"a.b/{number:09d}", "npy": picture(number), "json": {"n": number}, "txt": "é" * 300}
            )
    assert read_all(tmp_path) == webdataset_reads(tmp_path)
    assert read_all(tmp_path, "val") == read_all(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_header(tmp_path: Path, kind: int) -> None:
    folder = "f" * 40 + "/" + ("g" * 90 if kind != tarfile.USTAR_FORMAT else "g")
    members: Members = []
    for number in range(5):
        key = f"{folder}/{number:04d}"
        members += [(f"{key}.txt", b"caption"), (f"{key}.PNG", encode(picture(number), "png"))]
        members += [(f"{key}.json", json.dumps({"n": number}).encode())]
    write_tar(tmp_path / "x.tar", members, kind)
    assert read_all(tmp_path) == webdataset_reads(tmp_path)


def test_dots_capitals_and_missing_members_are_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    """A key ends at the first dot of the file's name."""
    write_tar(
        tmp_path / "x.tar",
        [
            ("22.05.png", encode(picture(0), "png")), ("22.json", b"{}"),
            ("B.PNG", encode(picture(1), "png")),
            ("c.txt", b"caption"), ("c.Seg.PnG", encode(picture(2), "png")), ("c.json", b"{}"),
            ("d.v1/e.png", encode(picture(3), "png")), ("d.v1/e.mask.txt", b"x"),
        ],
    )  # fmt: skip
    assert read_all(tmp_path) == webdataset_reads(tmp_path)
    assert [key for key, _ in read_all(tmp_path)] == ["22", "B", "c", "d.v1/e"]


def test_folders_links_names_without_keys_and_other_arrays_are_passed_over(tmp_path: Path) -> None:
    embedding = io.BytesIO()
    np.save(embedding, np.ones(512, np.float32))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("./", tarfile.DIRTYPE), ("./a.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        for name, payload in (
            ("README", b"x"),
            ("./._0001.jpg", b"x"),
            ("./0001.jpg", encode(picture(1), "jpg")),
            ("./0001.npy", embedding.getvalue()),
            ("__meta__.json", b"{}"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    assert [key for key, _ in read_all(tmp_path)] == ["0001"]


def padded_npy(pixels: NDArray[Any], order: Literal["C", "F"], header_bytes: int) -> bytes:
    """An .npy file with another padding."""
    text = f"{{'descr': '|u1', 'fortran_order': {order == 'F'}, 'shape': {pixels.shape}, }}"
    text = text.ljust(header_bytes - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + pixels.tobytes(order)


@pytest.mark.parametrize(("order", "header_bytes"), [("C", 80), ("C", 128), ("C", 192), ("F", 80), ("F", 128)])
def test_arrays_with_other_headers(tmp_path: Path, order: Literal["C", "F"], header_bytes: int) -> None:
    pixels = [picture(number) for number in range(3)]
    payloads = [encode(pixels[0], "raw"), *(padded_npy(each, order, header_bytes) for each in pixels[1:])]
    assert all(np.array_equal(np.load(io.BytesIO(p)), each) for p, each in zip(payloads, pixels, strict=True))
    write_tar(tmp_path / "x.tar", [(f"{number}.npy", payload) for number, payload in enumerate(payloads)])
    assert read_all(tmp_path) == [(str(number), each.tobytes()) for number, each in enumerate(pixels)]
    tar = tmp_path / "x.tar"
    offset = int(read_records(index_path(tar))[2]["offset"])
    data = bytearray(tar.read_bytes())
    data[offset + 1000] ^= 1
    status = tar.stat()
    tar.write_bytes(data)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match=r"x\.tar: sample 2: its bytes changed"):
        read_all(tmp_path)


def test_names_decide_the_split_where_they_can(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", simple(0, 3))
    write_tar(tmp_path / "val-0.tar", simple(3, 2))
    write_tar(tmp_path / "other.tar", simple(5, 1))
    assert len(read_all(tmp_path)) == 3
    assert [key for key, _ in read_all(tmp_path, "val")] == ["0003", "0004"]
    (tmp_path / "val-0.tar").unlink()
    with pytest.raises(InputError, match=r"no val\.json here and no val-\*\.tar"):
        open_shard_set(tmp_path, "val")


def test_shards_of_ours_without_a_manifest(tmp_path: Path) -> None:
    packed = write_shards(tmp_path, counts=(3, 2), side=32)
    before = open_shard_set(tmp_path, "train")
    (tmp_path / "train.json").unlink()
    after = open_shard_set(tmp_path, "train")
    assert after._replace(fingerprint=before.fingerprint) == before
    assert before.has_fingerprint(after.fingerprint)  # a run that began without the manifest goes on with it
    assert read_all(tmp_path) == [(key, pixels.tobytes()) for key, pixels in packed.items()]
    os.truncate(tmp_path / "train-000001.tar", 5000)
    with pytest.raises(InputError, match=r"train-000001\.tar: cut or changed"):
        open_shard_set(tmp_path, "train")


def test_indexed_once_and_again_when_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tar = tmp_path / "x.tar"
    write_tar(tar, simple(0, 3))
    first = open_shard_set(tmp_path, "train")
    assert "1 tars without an index" in caplog.text
    inode = index_path(tar).stat().st_ino
    assert open_shard_set(tmp_path, "train") == first
    assert index_path(tar).stat().st_ino == inode
    write_tar(tar, simple(5, 3))
    os.utime(tar, ns=(1, 1))
    assert [key for key, _ in read_all(tmp_path)] == ["0005", "0006", "0007"]
    assert read_index_header(index_path(tar)).tar_mtime_ns == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.index", "x.tar"]


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "x.tar", simple(0, 3))
    write = index.write_index

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        if path.parent == tmp_path:
            raise OSError(30, "Read-only file system")
        write(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tar_indexes, "write_index", refuse)
    shards = open_shard_set(tmp_path, "train")
    assert str(shards.indexes[0]).startswith(os.environ["XDG_CACHE_HOME"])
    assert len(read_all(tmp_path)) == 3
    assert not index_path(tmp_path / "x.tar").exists()


def _open(folder: Path, gate: "multiprocessing.synchronize.Event", results: "multiprocessing.Queue[str]") -> None:
    gate.wait(30)
    results.put(open_shard_set(folder, "train").fingerprint)


def test_processes_that_start_at_once_end_with_one_index(tmp_path: Path) -> None:
    for shard in range(6):
        write_tar(tmp_path / f"{shard}.tar", simple(shard * 50, 50))
    context = multiprocessing.get_context("fork")
    gate, results = context.Event(), context.Queue()
    workers = [context.Process(target=_open, args=(tmp_path, gate, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    gate.set()
    fingerprints = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join(30)
    assert fingerprints == {open_shard_set(tmp_path, "train").fingerprint}
    assert len(list(tmp_path.iterdir())) == 12


PNG = encode(picture(0), "png")
FAULTS: list[tuple[Members, str]] = [
    ([("a.png", PNG), ("../b.png", PNG)], r"x\.tar: sample \.\./b\.png: .* leads out"),
    ([("a.png", PNG), ("/etc/b.png", PNG)], r"x\.tar: sample /etc/b\.png: .* leads out"),
    ([("a.png", PNG), ("c/../../b.txt", b"")], r"x\.tar: sample c/\.\./\.\./b\.txt: .* leads out"),
    ([("a.png", PNG), ("b.txt", b"x"), ("c.png", PNG)], r"x\.tar: sample b: holds no image"),
    ([("a.png", PNG), ("b.txt", b"x")], r"x\.tar: sample b: holds no image"),
    ([("a.png", PNG), ("a.jpg", encode(picture(0), "jpg"))], r"x\.tar: sample a: holds two images"),
    ([("22.05.png", PNG), ("22.06.png", PNG)], r"x\.tar: sample 22: holds two images, 22\.06\.png is the second"),
    ([("a.png", PNG), ("b.png", PNG), ("a.json", b"{}")], r"x\.tar: sample a: .*its members are not adjacent"),
    ([("a.png", PNG), ("b.png", PNG), ("a.png", PNG)], r"x\.tar: sample a: occurs twice"),
    ([("a.png", PNG), ("b.png", b"RIFF....WEBP")], r"x\.tar: sample b: b\.png holds neither JPEG nor PNG"),
    ([("a.png", PNG), ("b.jpg", encode(picture(0), "jpg"))], r"sample b: is jpg 48x32, .* png 48x32; pack the images"),
    ([("a.png", PNG), ("b.png", encode(picture(0, 16, 16), "png"))], r"sample b: is png 16x16, .* png 48x32; pack the"),
    ([], r"the train shards hold no sample"),
]


@pytest.mark.timeout(5)
@pytest.mark.parametrize(("members", "message"), FAULTS)
def test_each_fault_names_shard_and_sample(tmp_path: Path, members: Members, message: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=message):
        open_shard_set(tmp_path, "train")


@pytest.mark.timeout(5)
def test_a_key_in_two_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", simple(0, 3))
    write_tar(tmp_path / "y.tar", simple(2, 3))
    for _ in range(2):
        with pytest.raises(InputError, match=r"y\.tar: sample 0002: x\.tar has a sample of that key too"):
            open_shard_set(tmp_path, "train")


def test_a_size_that_differs_between_shards_is_named_when_read(tmp_path: Path) -> None:
    """Shards indexed in two runs: each is of one size, the set is not."""
    for suffix, encoding in (("png", "png"), ("jpg", "jpg"), ("npy", "raw")):
        folder = tmp_path / suffix
        folder.mkdir()
        write_tar(folder / "b.tar", [(f"odd.{suffix}", encode(picture(1, 16, 24), encoding))])  # type: ignore[arg-type]
        open_shard_set(folder, "train")
        write_tar(folder / "a.tar", [(f"one.{suffix}", encode(picture(0), encoding))])  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match=rf"b\.tar: sample odd: is {encoding} 24x16, the set's crops are {encoding} 48x32; pack"
        ):
            read_all(folder)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:1300],
        lambda data: data[:5000],
        lambda data: b"",
        lambda data: b"not a tar" * 100,
        lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
        lambda data: data.replace(b"0002.png", b"\xff002.png"),
        lambda data: data + data,
    ],
)
def test_a_tar_that_is_not_whole_is_refused(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    tar = tmp_path / "x.tar"
    write_tar(tar, simple(0, 4), tarfile.USTAR_FORMAT)
    tar.write_bytes(harm(tar.read_bytes()))
    with pytest.raises(InputError, match=r"x\.tar: .*(not a whole tar|was cut)"):
        open_shard_set(tmp_path, "train")
    tar.unlink()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["png", "jpg", "progressive", "cmyk", "grey", "exif"]))
def test_sizes_are_those_pillow_reads(height: int, width: int, kind: str) -> None:
    mode = {"cmyk": "CMYK", "grey": "L"}.get(kind, "RGB")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[270] = "\xff\xc0" * 3000 if kind == "exif" else ""
    image = Image.new(mode, (width, height))
    image.save(buffer, "PNG" if kind == "png" else "JPEG", progressive=kind == "progressive", exif=exif)
    expected = Geometry("png" if kind == "png" else "jpg", height, width)
    assert read_geometry(memoryview(buffer.getvalue())) == expected


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\x01\x00"]))
def test_any_bytes_are_an_image_or_none(noise: bytes, start: bytes) -> None:
    read_geometry(memoryview(start + noise))
