"""Manifests, indexes and tars that nobody's relic wrote: each is refused by name, or read as webdataset reads it."""

import contextlib
import io
import json
import os
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import xxhash
from numpy.typing import NDArray

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.shards import tar_indexes
from relic.shards.index import IndexRecord, index_path, read_index_header, read_records, record_dtype, write_index
from relic.shards.manifest import parse_manifest
from relic.shards.npy import npy_header, parse_npy_header, read_npy
from relic.shards.plain_webdataset import scan_tar
from relic.shards.shard_set import open_shard_set
from relic.storage.spec import resolve_shards
from tests.conftest import encode, write_shards

END = bytes(1024)
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
NPY = encode(PIXELS, "raw")


def member(name: str | bytes, data: bytes = b"", *, kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """A member of a tar, with any field of size."""
    raw = name if isinstance(name, bytes) else name.encode()
    head = raw[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + (size or b"%011o\0" % len(data))
    head += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
    return head[:148] + b"%06o\0 " % sum(head) + head[156:] + data + bytes(-len(data) % 512)


def base256(value: int) -> bytes:
    return (b"\x80" if value >= 0 else b"\xff") + (value % (1 << 88)).to_bytes(11, "big")


def pax(name: bytes, value: bytes) -> bytes:
    body = b" " + name + b"=" + value + b"\n"
    length = len(body) + 1
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return member("pax", str(length).encode() + body, kind=b"x")


def keys_of(folder: Path) -> list[str]:
    shards = open_shard_set(folder, "train")
    with ShardLoader(shards, batch_size=4, threads=1) as loader:
        return [key for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1)) for key in batch.keys]


MANIFEST_FAULTS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    *(
        ("a shard is called", lambda value, name=name: value["shards"][0].update(name=name))
        for name in ("../../x.tar", "/etc/x.tar", "val-000000.tar", "train-000000.index", "train-0.tar", "", 7, None)
    ),
    ("listed twice", lambda value: value["shards"].append(value["shards"][0])),
    ("split is val", lambda value: value["packing"].update(split="val")),
    *(
        (f"{name} is", lambda value, name=name, number=number: value["packing"].update({name: number}))
        for name in ("width", "height")
        for number in (0, -1, 8193, 2**70, 32.0, "32", True, None)
    ),
    ("encoding is bmp", lambda value: value["packing"].update(encoding="bmp")),
    ("encoding is", lambda value: value["packing"].update(encoding=["raw"])),
    ("samples is", lambda value: value["shards"][0].update(samples=3 * 10**8)),
    ("samples is", lambda value: value["shards"][0].update(samples=-1)),
    ("bytes is", lambda value: value["shards"][0].update(bytes=0)),
    ("no sha256", lambda value: value["shards"][0].update(sha256="0" * 63)),
    ("accepted is", lambda value: value.update(accepted="1")),
    ("not a manifest", lambda value: value.pop("rejected")),
    ("not a manifest", lambda value: value.update(shards={"a": 1})),
    ("not a manifest", lambda value: value.update(packing=None)),
    ("not a manifest", lambda value: value["packing"].update(extra=1)),
]


@pytest.mark.parametrize(("message", "harm"), MANIFEST_FAULTS)
def test_a_manifest_is_checked_before_it_is_used(
    tmp_path: Path, message: str, harm: Callable[[dict[str, Any]], object]
) -> None:
    write_shards(tmp_path, counts=(1, 1), side=16)
    path = tmp_path / "train.json"
    value = json.loads(path.read_text())
    harm(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=rf"train\.json: not a manifest that relic wrote \(.*{message}|{message}"):
        open_shard_set(tmp_path, "train")


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"\xff\xfe", b"[1]", b"null", b'{"a": ' + b"9" * 5000 + b"}"])
def test_text_that_is_no_manifest(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "train.json").write_bytes(text)
    with pytest.raises(InputError, match=r"train\.json: not a manifest that relic wrote .*; pack the shards again"):
        parse_manifest(tmp_path / "train.json", "train")


def raw_index(table: NDArray[Any], samples: int, tar_bytes: int, record_bytes: int) -> bytes:
    """An index whose hash is right, whatever else it says."""
    data = table.tobytes()
    return (
        struct.pack("<8sIIQQQQ16x", b"RELICIDX", 1, record_bytes, samples, tar_bytes, xxhash.xxh3_64_intdigest(data), 0)
        + data
    )


def index_table(*records: tuple[int, int, bytes]) -> NDArray[Any]:
    table = np.zeros(len(records), record_dtype(32))
    for row, (offset, size, key) in zip(table, records, strict=True):
        row["offset"], row["size"], row["key"] = offset, size, key
    return table


GOOD = index_table((512, 100, b"a"), (1536, 100, b"b"))
INDEX_FAULTS = [
    *((np.zeros(2 * size, np.uint8), 2, 4096, size) for size in (0, 8, 16, 24, 33, 24 + 1032)),
    (GOOD, 3, 4096, 32),
    (GOOD, 2, 1023, 32),
    (GOOD, 2, 2**63, 32),
    (np.zeros(0, np.uint8), 3 * 10**8, 4096, 0),
    (np.zeros(0, np.uint8), 2**60, 2**62, 2**31),
    (index_table((2**63, 1, b"a")), 1, 4096, 32),
    (index_table((512, 2**62, b"a")), 1, 4096, 32),
    (index_table((512, 2**64 - 1, b"a")), 1, 4096, 32),
    (index_table((4096, 1, b"a")), 1, 4096, 32),
    (index_table((0, 1, b"a")), 1, 4096, 32),
    (index_table((512, 100, b"a"), (512, 100, b"b")), 2, 4096, 32),
    (index_table((1536, 100, b"a"), (512, 100, b"b")), 2, 4096, 32),
    (index_table((512, 100, b"a"), (1536, 100, b"a")), 2, 4096, 32),
    (index_table((512, 100, b"")), 1, 4096, 32),
]


@pytest.mark.parametrize(("table", "samples", "tar_bytes", "record_bytes"), INDEX_FAULTS)
def test_an_index_is_held_against_the_lengths_of_itself_and_the_tar(
    tmp_path: Path, table: NDArray[Any], samples: int, tar_bytes: int, record_bytes: int
) -> None:
    path = tmp_path / "x.index"
    path.write_bytes(raw_index(GOOD, 2, 4096, 32))
    assert len(read_records(path)) == 2
    path.write_bytes(raw_index(table, samples, tar_bytes, record_bytes))
    with pytest.raises(InputError, match=r"x\.index: the index is damaged \(.*; delete it and pack the shards again"):
        read_records(path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["train-000000.index", "train.json", "train-000000.tar"])
def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path, counts=(1,), side=16)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=name):
        open_shard_set(tmp_path, "train")
    (tmp_path / "train.json").unlink()
    with contextlib.suppress(InputError):
        open_shard_set(tmp_path, "train")


HUGE = base256(1 << 80)
TAR_FAULTS = [
    ("back to itself", member("a.npy", NPY) + member("a.txt", size=base256(-512)), "a member of -512 bytes"),
    ("back", member("a.npy", NPY) + member("b.npy", size=base256(-(1 << 40))), "not a whole tar"),
    ("pax back", member("a.npy", NPY) + pax(b"size", b"-1024") + member("a.txt"), "not a whole tar"),
    ("huge", member("a.npy", size=HUGE), "was cut|not a whole tar"),
    ("huge long name", member("@LongLink", kind=b"L", size=base256(1 << 40)), "an extended header of"),
    ("huge pax", member("pax", kind=b"x", size=HUGE), "an extended header of"),
    ("pax of digits", member("pax", b"9" * 500_000, kind=b"x") + member("a.npy", NPY), "more than 256 digits"),
    ("chain", member("pax", b"", kind=b"x") * 3000 + member("a.npy", NPY), "not a whole tar"),
    ("sparse map", pax(b"GNU.sparse.map", b"x,y") + member("a.npy", NPY), "not a whole tar"),
    ("long key", pax(b"path", b"k" * 5000 + b".npy") + member("a.npy", NPY), "a name of 5,004 bytes"),
    ("zero byte", pax(b"path", b"k\0k.npy") + member("a.npy", NPY), "no zero byte"),
    ("cut npy", member("a.npy", NPY[:-1]), "does not hold the pixels"),
    ("png of no width", member("a.png", encode(PIXELS, "png")[:16] + bytes(4) + encode(PIXELS, "png")[20:]), "sides"),
    ("wide png", member("a.png", encode(PIXELS, "png")[:16] + b"\xff" * 4 + encode(PIXELS, "png")[20:]), "sides are"),
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("data", "message"), [fault[1:] for fault in TAR_FAULTS], ids=[f[0] for f in TAR_FAULTS])
def test_headers_of_tars_are_checked_before_they_are_followed(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(data + END)
    with pytest.raises(InputError, match=rf"x\.tar: .*({message})"):
        keys_of(tmp_path)
    assert not index_path(tmp_path / "x.tar").exists()


@pytest.mark.timeout(20)
def test_damaged_tars_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = b"".join(
        (
            pax(b"path", b"long/" + b"n" * 200 + b".npy"),
            member("x", NPY),
            member("b.txt", b"note"),
            member("b.npy", NPY),
        )
    )
    for _ in range(300):
        data = bytearray(whole + END)
        for _ in range(rng.randint(1, 4)):
            block = rng.choice([0, 512, 1024, len(whole) - len(NPY) - 1024])
            data[min(block + rng.randrange(512), len(data) - 1)] = rng.randrange(256)
        (tmp_path / "x.tar").write_bytes(data)
        with contextlib.suppress(InputError):
            list(scan_tar(tmp_path / "x.tar"))


def test_names_of_every_script_are_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    names = ["日本語", "__thumb", "____", "___", "__a__b", "фото", "صورة", "-x", "é"]
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        for name in (*(f"{name}.npy" for name in names), "__meta__/notes.npy", "__index.json"):
            info = tarfile.TarInfo(name)
            info.size = len(NPY)
            archive.addfile(info, io.BytesIO(NPY))
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False) if "npy" in sample]
    assert keys_of(tmp_path) == theirs == names


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    names = [b"caf\xe9", b"\xfcber", b"plain", b"caf\xe8"]
    (tmp_path / "x.tar").write_bytes(b"".join(member(name + b".npy", NPY) for name in names) + END)
    keys = keys_of(tmp_path)
    assert keys == [r"caf\xe9", r"\xfcber", "plain", r"caf\xe8"]
    assert read_records(index_path(tmp_path / "x.tar"))["key"].tolist() == names
    (tmp_path / "y.tar").write_bytes(member(b"caf\xe9.npy", NPY) + END)
    with pytest.raises(InputError, match=r"y\.tar: sample caf\\xe9: x\.tar has a sample of that key too"):
        open_shard_set(tmp_path, "train")


@pytest.mark.parametrize(
    ("start", "what"), [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz")]
)
def test_compressed_tars_are_named(tmp_path: Path, start: bytes, what: str) -> None:
    data = start + bytes(2000)
    (tmp_path / "x.tar.gz").write_bytes(data)
    for spec in (tmp_path / "x.tar.gz", f"{tmp_path}/{{x,y}}.tar.gz"):
        (tmp_path / "y.tar.gz").write_bytes(data)
        with pytest.raises(InputError, match=rf"x\.tar\.gz: is compressed \({what}\).*unpack it: \w+ -dc FILE"):
            resolve_shards(str(spec), "train")
    with pytest.raises(InputError, match=r"no train\.json here and no train tar, but x\.tar\.gz; unpack"):
        open_shard_set(tmp_path, "train")
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.tar: is compressed \({what}\)"):
        open_shard_set(tmp_path, "train")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt: neither a folder nor called \*\.tar"):
        open_shard_set(tmp_path / "notes.txt", "train")


def test_an_index_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member("a.npy", NPY) + END)
    theirs = index_path(tmp_path / "x.tar")
    for text in (b"v1.2 1\njpg 512 900 0\n", b"", b"RELICIDX\2\0\0\0" + bytes(60)):
        theirs.write_bytes(text)
        for _ in range(2):
            shards = open_shard_set(tmp_path, "train")
            assert shards.num_samples == 1
            assert str(shards.indexes[0]).startswith(os.environ["XDG_CACHE_HOME"])
        assert theirs.read_bytes() == text


def test_a_damaged_index_of_a_plain_tar_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member("a.npy", NPY) + END)
    open_shard_set(tmp_path, "train")
    path = index_path(tmp_path / "x.tar")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert keys_of(tmp_path) == ["a"]
    assert path.read_bytes() == whole


def test_tars_with_numbers_for_endings_have_an_index_each(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"photos.{number:03d}").write_bytes(member(f"{number}.npy", NPY) + END)
    assert resolve_shards(f"{tmp_path}/photos.00{{0,1}}", "train").samples == (1, 1)
    assert index_path(Path("a/train-000000.tar")) == Path("a/train-000000.index")


def test_a_tar_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member("a.npy", NPY) + END)
    (tmp_path / "link.tar").symlink_to("a.tar")
    for names in ("a,a", "a,link"):
        with pytest.raises(InputError, match="twice; each sample is read once"):
            resolve_shards(f"{tmp_path}/{{{names}}}.tar", "train")


@pytest.mark.parametrize("mtime_ns", [0, -5 * 10**9])
def test_a_plain_tar_of_1970_is_indexed_anew_when_it_is_replaced(tmp_path: Path, mtime_ns: int) -> None:
    tar = tmp_path / "x.tar"
    for keys in (["a"], ["b", "c"]):
        tar.write_bytes(b"".join(member(f"{key}.npy", NPY) for key in keys) + END)
        os.utime(tar, ns=(mtime_ns, mtime_ns))
        assert keys_of(tmp_path) == keys
        assert read_index_header(index_path(tar)).tar_mtime_ns


def test_a_stale_index_is_not_used_for_a_longer_tar(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(member("a.npy", NPY) + END)
    write_index(index_path(tar), [IndexRecord(512, len(NPY), 0, "a")], tar.stat().st_size, tar_mtime_ns=1)
    assert keys_of(tmp_path) == ["a"]
    assert tar_indexes.find_index(tar) is not None


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 5, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 5, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 5}",
        "{'descr': ['|u1'], 'fortran_order': False, 'shape': (5, 5, 3)}",
        "{'descr': 5, 'fortran_order': [], 'shape': (5, 5, 3)}",
        "(" * 9000,
        "-" * 9000 + "1",
        "{'a': 1",
        "  {",
        "\n x\n  y",
        "'''",
        "{" + "1:" * 3000,
    ],
)
def test_every_error_of_an_npy_header_is_a_value_error(text: str) -> None:
    header = text.encode()
    payload = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(ValueError):
        parse_npy_header(payload)


def test_npy_headers_with_flipped_bytes_raise_nothing_else() -> None:
    rng = random.Random(0)
    for _ in range(500):
        data = bytearray(npy_header(16, 16) + bytes(768))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(128)] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            read_npy(memoryview(data))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file whose first bytes cannot be read")
def test_an_error_of_reading_names_the_file(tmp_path: Path) -> None:
    write_shards(tmp_path, counts=(2,), side=16)
    tar = tmp_path / "train-000000.tar"
    for path in (tmp_path / "train.json", index_path(tar), tar):
        whole = path.read_bytes()
        path.unlink()
        path.symlink_to("/proc/self/mem")
        reads: list[Callable[[Path], object]] = [
            lambda path: parse_manifest(path, "train"),
            read_index_header,
            lambda path: list(scan_tar(path)),
        ]
        for read in reads:
            with pytest.raises(OSError, match=str(path)) as caught:
                read(path)
            assert caught.value.filename == str(path)
        path.unlink()
        path.write_bytes(whole)


def test_a_manifest_that_is_a_link_to_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    """Without it, the tars of all splits would be read."""
    write_shards(tmp_path, counts=(2,), side=16)
    (tmp_path / "train.json").unlink()
    for target in ("nowhere.json", "train.json"):
        (tmp_path / "train.json").symlink_to(target)
        with pytest.raises(OSError, match=r"train\.json"):
            open_shard_set(tmp_path, "train")
        (tmp_path / "train.json").unlink()


@pytest.mark.parametrize("version", [True, 1.0, "1"])
def test_a_version_is_a_whole_number(tmp_path: Path, version: object) -> None:
    write_shards(tmp_path, counts=(1,), side=16)
    value = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps({**value, "format_version": version}))
    with pytest.raises(InputError, match="shard format"):
        open_shard_set(tmp_path, "train")


@pytest.mark.parametrize("start", [b"LZIP\1", b"]\0\0\x80\0", b"\x89LZO\0\r\n", b"Rar!\x1a\7"])
def test_rarer_compressed_files_are_called_compressed(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "train-0.tar").write_bytes(start + bytes(2048))
    with pytest.raises(InputError, match="is compressed"):
        open_shard_set(tmp_path, "train")
