"""Tars that relic did not write (by webdataset, img2dataset or tar): find their images, and their records."""

import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import xxhash

from relic.errors import InputError
from relic.files import errors_named, open_regular
from relic.shards.checked_tar import CheckedMember
from relic.shards.image_header import Geometry, read_geometry
from relic.shards.index import (
    MAX_KEY_BYTES,
    IndexRecord,
    key_bytes,
    shown_key,
)
from relic.shards.manifest import MAX_SIDE
from relic.shards.npy import read_npy
from relic.shards.ustar import BLOCK_BYTES

IMAGE_SUFFIXES = {"npy", "jpg", "jpeg", "png"}
PACK = "pack the images with prep/make_shards.py"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""Key and suffix, split as webdataset does: at the first dot of the file name."""
_META = re.compile(r"__[^/]*__(/|$)", re.DOTALL)
"""What webdataset passes over: all that lies in a folder such as `__meta__`."""
_MAX_IMAGE_BYTES = 512 << 20
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"\x1f\x9d": ("compress", "gzip -dc"),
    b"LZIP": ("lzip", "lzip -dc"),
    b"]\0\0": ("lzma", "xz -dc"),
    b"\x89LZO": ("lzop", "lzop -dc"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"Rar!": ("rar", "unrar x"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
}
COMPRESSED_TAR = re.compile(
    r".+\.(tar\.(gz|zst|zstd|xz|bz2|lz4|lz|lzma|lzo|br|Z)|tgz|tzst|txz|tlz|tbz2?)", re.IGNORECASE | re.DOTALL
)
"""Names of compressed tars."""


class CutTarError(InputError):
    """A file that ends too early, or is no tar."""


class FoundMember(NamedTuple):
    """A sample's record, and the encoding and size of its image."""

    record: IndexRecord
    geometry: Geometry


def scan_tar(tar: Path, *, name: str = "") -> Iterator[FoundMember]:
    """Read `tar` from start to end and yield the image of each sample. Errors call the tar `name`, if given.

    Raises CutTarError for a tar that is not whole. Raises InputError, naming shard and sample, for a compressed file, a
    member whose name leads out of the archive, a key that occurs twice, and a sample without exactly one image.
    """
    shown = name or str(tar)
    with errors_named(shown), open_regular(tar) as file:
        refuse_compressed(file.read(8), shown)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=CheckedMember) as archive:
                yield from _samples(archive, file, shown)
                _check_end(file, archive.offset, shown)
        except (InputError, OSError):
            raise
        except Exception as error:  # tarfile raises many types for damaged headers
            raise CutTarError(f"{shown}: not a whole tar file ({str(error) or type(error).__name__})") from error


def refuse_compressed(start: bytes, shown: str) -> None:
    """Raise InputError if a file that begins with `start` is compressed: samples are read at their places in a tar."""
    for magic, (what, command) in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{shown}: is compressed ({what}); images hardly shrink, so unpack it: {command} FILE > NAME.tar"
            )


def _samples(archive: tarfile.TarFile, file: IO[bytes], shown: str) -> Iterator[FoundMember]:
    seen: set[str] = set()
    key, found = "", None
    tar_bytes = os.fstat(file.fileno()).st_size
    while (member := _next_member(archive)) is not None:
        split = _NAME.fullmatch(_checked_name(member.name, shown))
        if not member.isreg() or split is None or _META.match(split[0]):
            continue
        if split[1] != key:
            yield from _complete(found, key, shown)
            key, found = split[1], None
            if key in seen:
                raise InputError(
                    f"{shown}: sample {_plain(key)}: occurs twice, or its members are not adjacent; {PACK}"
                )
            seen.add(key)
        if split[2].lower().rpartition(".")[2] in IMAGE_SUFFIXES:
            image = _read_image(member, file, tar_bytes, key, shown)
            if image is not None and found is not None:
                raise InputError(
                    f"{shown}: sample {_plain(key)}: holds two images, {_plain(member.name)} is the second; {PACK}"
                )
            found = image or found
    yield from _complete(found, key, shown)


def _next_member(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end. Raises ValueError for a header that leads back: it would be read for ever."""
    member = archive.next()
    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
    if member is not None and (member.size < 0 or archive.offset <= member.offset):
        raise ValueError(f"a member of {member.size} bytes at byte {member.offset}")
    return member


def _plain(name: str) -> str:
    """A name as messages hold it. tarfile has bytes that are not UTF-8 as surrogates, which cannot be printed."""
    return shown_key(key_bytes(name))


def _checked_name(name: str, shown: str) -> str:
    """The member's name without `./`."""
    if name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{shown}: sample {_plain(name)}: the member's name leads out of the archive; {PACK}")
    if "\0" in name or len(key_bytes(name)) > MAX_KEY_BYTES:
        raise InputError(
            f"{shown}: sample {_plain(name)[:60]!r}...: a name of {len(key_bytes(name)):,} bytes, at most "
            f"{MAX_KEY_BYTES:,} and no zero byte; {PACK}"
        )
    return posixpath.normpath(name)


def _complete(found: FoundMember | None, key: str, shown: str) -> Iterator[FoundMember]:
    """The sample of `key`, if it has an image. Notes about the set, whose names begin with `__`, need none."""
    if found is not None:
        yield found
    elif key and not posixpath.basename(key).startswith("__"):
        raise InputError(f"{shown}: sample {_plain(key)}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {PACK}")


def _read_image(member: tarfile.TarInfo, file: IO[bytes], tar_bytes: int, key: str, shown: str) -> FoundMember | None:
    """None for an `.npy` file that is no image, such as an embedding."""
    sample, name = f"{shown}: sample {_plain(key)}", _plain(member.name)
    if member.issparse():
        raise InputError(f"{sample}: {name} is a sparse file; {PACK}")
    left = tar_bytes - member.offset_data
    if member.size > left:
        raise CutTarError(f"{sample}: {member.size} bytes expected, {max(left, 0)} found; the shard was cut")
    if member.size > _MAX_IMAGE_BYTES:
        raise InputError(f"{sample}: {name} is larger than {_MAX_IMAGE_BYTES >> 20} MiB; {PACK}")
    file.seek(member.offset_data)
    payload = file.read(member.size)
    if len(payload) != member.size:
        raise CutTarError(f"{sample}: {member.size} bytes expected, {len(payload)} found; the shard was cut")
    geometry = read_geometry(memoryview(payload))
    if geometry is None:
        if member.name.lower().endswith(".npy"):
            return None
        raise InputError(f"{sample}: {name} holds neither JPEG nor PNG data; {PACK}")
    check_geometry(geometry, sample)
    if geometry.encoding == "raw":
        try:
            read_npy(memoryview(payload))
        except ValueError as error:
            raise InputError(f"{sample}: {name} does not hold the pixels that its header tells; {PACK}") from error
    return FoundMember(IndexRecord(member.offset_data, member.size, xxhash.xxh3_64_intdigest(payload), key), geometry)


def check_geometry(geometry: Geometry, sample: str) -> None:
    """Raise InputError for a size that no crop has: buffers are made of it before any pixel is decoded."""
    if not (1 <= geometry.height <= MAX_SIDE and 1 <= geometry.width <= MAX_SIDE):
        raise InputError(f"{sample}: is {geometry}; sides are from 1 to {MAX_SIDE} pixels; {PACK}")


def _check_end(file: IO[bytes], offset: int, shown: str) -> None:
    """Check that only zeros follow the last member, in at least one block.

    tarfile raises no error for a damaged header, nor for a file that was cut between two members.
    """
    file.seek(offset)
    block = file.read(BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        raise CutTarError(f"{shown}: the tar has no end mark; the shard was cut")
    while block:
        if block.count(0) != len(block):
            raise CutTarError(f"{shown}: not a whole tar file (no header of a member at byte {offset})")
        offset += len(block)
        block = file.read(1 << 20)


def index_tar(tar: Path, geometry: Geometry | None, *, name: str = "") -> list[IndexRecord]:
    """The records of `tar`. Raises InputError for an image of other `geometry` (None: that of the first image)."""
    records = []
    for record, found in scan_tar(tar, name=name):
        geometry = geometry or found
        if found != geometry:
            raise InputError(
                f"{name or tar}: sample {_plain(record.key)}: is {found}, the set's first image {geometry}; {PACK}"
            )
        records.append(record)
    return records
