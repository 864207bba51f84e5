"""Tars that relic did not write (by webdataset, img2dataset or tar): find their images and index them once."""

import logging
import math
import os
import posixpath
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import xxhash

from relic.cache import cache_folder, short_hash
from relic.errors import InputError
from relic.lock import lock
from relic.shards.image_header import Geometry, read_geometry
from relic.shards.index import IndexHeader, IndexRecord, index_path, read_header, write_index
from relic.shards.ustar import BLOCK_BYTES

IMAGE_SUFFIXES = {"npy", "jpg", "jpeg", "png"}
PACK = "pack the images with prep/make_shards.py"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""Key and suffix, split as webdataset does: at the first dot of the file name."""

log = logging.getLogger(__name__)


class CutTarError(InputError):
    """A file that ends too early, or is no tar."""


class Found(NamedTuple):
    """A sample's record, and the encoding and size of its image."""

    record: IndexRecord
    geometry: Geometry


class TarIndex(NamedTuple):
    """The path of a tar's index, and its header."""

    path: Path
    header: IndexHeader


def scan_tar(tar: Path, *, name: str = "") -> Iterator[Found]:
    """Read `tar` from start to end and yield the image of each sample. Errors call the tar `name`, if given.

    Raises CutTarError for a tar that is not whole. Raises InputError, naming shard and sample, for a member whose name
    leads out of the archive, a key that occurs twice, and a sample without exactly one image.
    """
    shown = name or str(tar)
    with tar.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield from _samples(archive, file, shown)
                _check_end(file, archive.offset, shown)
        except (tarfile.TarError, EOFError) as error:
            raise CutTarError(f"{shown}: not a whole tar file ({error})") from error


def _samples(archive: tarfile.TarFile, file: IO[bytes], shown: str) -> Iterator[Found]:
    seen: set[str] = set()
    key, found = "", None
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
        split = _NAME.fullmatch(_checked_name(member.name, shown))
        if not member.isreg() or split is None or posixpath.basename(split[1]).startswith("__"):
            continue
        if split[1] != key:
            if key:
                yield _complete(found, key, shown)
            key, found = split[1], None
            if key in seen:
                raise InputError(f"{shown}: sample {key}: occurs twice, or its members are not adjacent; {PACK}")
            seen.add(key)
        if split[2].lower().rpartition(".")[2] in IMAGE_SUFFIXES:
            image = _read_image(member, file, key, shown)
            if image is not None and found is not None:
                raise InputError(f"{shown}: sample {key}: holds two images, {member.name} is the second; {PACK}")
            found = image or found
    if key:
        yield _complete(found, key, shown)


def _checked_name(name: str, shown: str) -> str:
    """The member's name without `./`."""
    if name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{shown}: sample {name}: the member's name leads out of the archive; {PACK}")
    return posixpath.normpath(name)


def _complete(found: Found | None, key: str, shown: str) -> Found:
    if found is None:
        raise InputError(f"{shown}: sample {key}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {PACK}")
    return found


def _read_image(member: tarfile.TarInfo, file: IO[bytes], key: str, shown: str) -> Found | None:
    """None for an `.npy` file that is no image, such as an embedding."""
    if member.issparse():
        raise InputError(f"{shown}: sample {key}: {member.name} is a sparse file; {PACK}")
    file.seek(member.offset_data)
    payload = file.read(member.size)
    if len(payload) != member.size:
        raise CutTarError(
            f"{shown}: sample {key}: {member.size} bytes expected, {len(payload)} found; the shard was cut"
        )
    geometry = read_geometry(memoryview(payload))
    if geometry is None:
        if member.name.lower().endswith(".npy"):
            return None
        raise InputError(f"{shown}: sample {key}: {member.name} holds neither JPEG nor PNG data; {PACK}")
    return Found(IndexRecord(member.offset_data, member.size, xxhash.xxh3_64_intdigest(payload), key), geometry)


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
                f"{name or tar}: sample {record.key}: is {found}, the set's first image {geometry}; {PACK}"
            )
        records.append(record)
    return records


def cached_index_path(tar: Path) -> Path:
    """The path of the index of a tar in a folder that cannot be written to."""
    return cache_folder("indexes", short_hash(str(tar.resolve().parent)), index_path(tar).name)


def find_index(tar: Path) -> TarIndex | None:
    """A tar's index that still fits it, beside the tar or in the cache folder.

    Raises InputError for a shard that relic packed and whose length is not the indexed one.
    """
    status = tar.stat()
    for path in (index_path(tar), cached_index_path(tar)):
        if not path.exists():
            continue
        header = read_header(path)
        same_size = header.tar_bytes == status.st_size
        if not header.tar_mtime_ns and not same_size:
            raise InputError(f"{tar}: cut or changed since it was packed; run the same make_shards.py with --overwrite")
        if same_size and header.tar_mtime_ns in (0, status.st_mtime_ns):
            return TarIndex(path, header)
    return None


def ensure_indexes(tars: Sequence[Path]) -> list[TarIndex]:
    """The index of every tar. A tar without an index, or with a stale one, is read once and indexed.

    Processes that start together share the work. Each tar is locked while it is indexed. A process that finds a tar
    locked takes the next one. The index is written beside the tar, or into the cache folder where that is not possible.
    """
    missing = [tar for tar in tars if find_index(tar) is None]
    if missing:
        geometry = _first_geometry(tars)
        busy = [tar for tar in missing if not _index_locked(tar, geometry, missing, wait_seconds=0)]
        for tar in busy:
            _index_locked(tar, geometry, missing, wait_seconds=math.inf)
    indexes = []
    for tar in tars:
        index = find_index(tar)
        if index is None:
            raise InputError(f"{tar}: changed while it was read; wait until it is written")
        indexes.append(index)
    return indexes


def _first_geometry(tars: Sequence[Path]) -> Geometry | None:
    return next((found.geometry for tar in tars for found in scan_tar(tar)), None)


def _index_locked(tar: Path, geometry: Geometry | None, missing: Sequence[Path], *, wait_seconds: float) -> bool:
    """Index `tar` unless another process did; False when another is still indexing it after `wait_seconds`.

    On a file system without locks several processes may index a tar. Each renames the same bytes into place.
    """
    with lock(tar, wait_seconds=wait_seconds) as held:
        if held and find_index(tar) is None:
            if tar == missing[0]:
                log.info("%s: %d tars without an index: indexing them once", tar.parent, len(missing))
            status = tar.stat()
            store_index(tar, index_tar(tar, geometry), status)
    return held


def store_index(tar: Path, records: Sequence[IndexRecord], status: os.stat_result) -> None:
    """Write the index of `tar`, which has that size and mtime, beside it; where that fails, into the cache folder."""
    tag = f".{os.getpid()}-{threading.get_ident()}"
    try:
        write_index(index_path(tar), records, status.st_size, tar_mtime_ns=status.st_mtime_ns, tag=tag)
    except OSError as error:
        path = cached_index_path(tar)
        log.info("%s: cannot be written to (%s); its index goes to %s", tar.parent, error.strerror, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, records, status.st_size, tar_mtime_ns=status.st_mtime_ns, tag=tag)
