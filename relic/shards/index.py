"""The index beside a shard: the place, hash and key of each sample, as binary records of one size.

64-byte header | samples x record

header: magic, version, bytes per record, samples, bytes of the tar, xxh3-64 of all records, mtime of the tar in
        nanoseconds (0 for shards that relic packed: they may be copied), 16 zeros (little endian)
record: offset u64, size u64 (of the image member's payload inside the tar), xxh3-64 of that payload, key
        (the bytes of the name, padded with zeros to the longest key of the shard)

An index may come from a web server. `read_header` holds its numbers against the length of the file, and `read_records`
holds those of the records against the length of the tar, before anything is made of them.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from relic.errors import InputError
from relic.files import atomic_write, errors_named, open_regular

SUFFIX = ".index"
MAX_KEY_BYTES = 1024
"""Records are as long as the longest key, so a key without a limit could make an index of any size."""
_MAGIC = b"RELICIDX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQ16x")
_FIXED_BYTES = 24
_BLOCK_BYTES = 512

_checked: "set[tuple[Path, IndexHeader]]" = set()
"""Indexes whose records were checked in this process. A loader opens the same shards again and again."""


class IndexRecord(NamedTuple):
    """One sample: payload offset and size in bytes, xxh3-64 of the payload, key.

    Bytes of the key that are not UTF-8 are surrogates, as Python's tarfile has them.
    """

    offset: int
    size: int
    xxh3: int
    key: str


class IndexHeader(NamedTuple):
    """What the header says of a shard."""

    samples: int
    record_bytes: int
    tar_bytes: int
    records_xxh3: int
    tar_mtime_ns: int = 0


def index_path(tar: Path) -> Path:
    """`train-000000.tar` -> `train-000000.index`, in the same folder; `photos.000` -> `photos.000.index`."""
    return tar.with_suffix(SUFFIX) if tar.suffix == ".tar" else tar.with_name(tar.name + SUFFIX)


def most_index_bytes(tar_bytes: int) -> int:
    """The bytes of the largest index that a tar of that length can have."""
    return _HEADER.size + tar_bytes // _BLOCK_BYTES * (_FIXED_BYTES + MAX_KEY_BYTES)


def key_bytes(key: str) -> bytes:
    """The bytes of a key in the index."""
    return key.encode("utf-8", "surrogateescape")


def shown_key(key: bytes) -> str:
    """The key as messages and reports hold it: bytes that are not UTF-8 are written as `\\xe9`."""
    return key.decode("utf-8", "backslashreplace")


def record_dtype(record_bytes: int) -> npt.DTypeLike:
    """The numpy structured dtype of one record of `record_bytes` bytes (memory-mappable)."""
    return np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3", "<u8"), ("key", f"S{record_bytes - _FIXED_BYTES}")])


def write_index(
    path: Path, records: Sequence[IndexRecord], tar_bytes: int, *, tar_mtime_ns: int = 0, once: bool = False
) -> None:
    """Write the index of a shard of `tar_bytes` bytes atomically. `once`: see `relic.files.publish_once`."""
    keys = [key_bytes(record.key) for record in records]
    widest = max((len(key) for key in keys), default=1)
    record_bytes = _FIXED_BYTES + -(-widest // 8) * 8
    table = np.zeros(len(records), record_dtype(record_bytes))
    for row, record, key in zip(table, records, keys, strict=True):
        row["offset"], row["size"], row["xxh3"], row["key"] = record.offset, record.size, record.xxh3, key
    with atomic_write(path, once=once) as file:
        file.write(index_bytes(table, tar_bytes, tar_mtime_ns))


def index_bytes(table: npt.NDArray[np.void], tar_bytes: int, tar_mtime_ns: int = 0) -> bytes:
    """The index file of a shard whose records are `table` (of `record_dtype`)."""
    data = table.tobytes()
    digest = xxhash.xxh3_64_intdigest(data)
    return _HEADER.pack(_MAGIC, _VERSION, table.itemsize, len(table), tar_bytes, digest, tar_mtime_ns) + data


def is_index(path: Path) -> bool:
    """Whether `path` is an index of this version of relic, damaged or not. Other programs write `.index` files too."""
    try:
        with open_regular(path) as file:
            return file.read(12) == _MAGIC + struct.pack("<I", _VERSION)
    except (OSError, InputError):
        return False


def read_index_header(path: Path) -> IndexHeader:
    """Read the first 64 bytes. Raises InputError when the file is missing, damaged or of another version."""
    with errors_named(path), _opened(path) as file:
        return _read_header(file, path)


def read_records(path: Path) -> npt.NDArray[np.void]:
    """The records of `read_index`."""
    return read_index(path)[1]


def read_index(path: Path) -> tuple[IndexHeader, npt.NDArray[np.void]]:
    """The header, and all records as a structured array (`offset`, `size`, `xxh3`, `key`).

    The samples lie inside the tar, one after the other, and their keys differ. Raises InputError for a damaged file.
    """
    with errors_named(path), _opened(path) as file:
        header = _read_header(file, path)
        data = file.read(header.samples * header.record_bytes)
    return header, _parse_records(data, header, path)


def parse_index(data: bytes, path: Path) -> tuple[IndexHeader, npt.NDArray[np.void]]:
    """The same of an index that is to become the file `path`."""
    header = _parse_header(data[: _HEADER.size], len(data), path)
    return header, _parse_records(data[_HEADER.size :], header, path)


def _parse_records(data: bytes, header: IndexHeader, path: Path) -> npt.NDArray[np.void]:
    if len(data) != header.samples * header.record_bytes or xxhash.xxh3_64_intdigest(data) != header.records_xxh3:
        raise _damaged(path, "its bytes changed since it was written")
    records = np.frombuffer(data, record_dtype(header.record_bytes))
    if len(records) and (path, header) not in _checked:
        _check_records(records, header, path)
        _checked.add((path, header))
    return records


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise InputError(f"{path}: the shard's index is missing; pack the shards again") from None


def _read_header(file: BinaryIO, path: Path) -> IndexHeader:
    return _parse_header(file.read(_HEADER.size), os.fstat(file.fileno()).st_size, path)


def _parse_header(raw: bytes, length: int, path: Path) -> IndexHeader:
    if len(raw) < _HEADER.size or raw[:8] != _MAGIC:
        raise InputError(f"{path}: not an index that relic wrote; delete it and pack the shards again")
    _, version, record_bytes, samples, tar_bytes, digest, tar_mtime_ns = _HEADER.unpack(raw)
    if version != _VERSION:
        raise InputError(f"{path}: index version {version}, this relic reads {_VERSION}; pack the shards again")
    key_width = record_bytes - _FIXED_BYTES
    if not 8 <= key_width <= MAX_KEY_BYTES or key_width % 8:
        raise _damaged(path, f"records of {record_bytes} bytes")
    if length != _HEADER.size + samples * record_bytes:
        raise _damaged(path, f"{length} bytes are not {samples} records of {record_bytes} bytes")
    if tar_bytes >= 2**63 or samples > tar_bytes // _BLOCK_BYTES:
        raise _damaged(path, f"{samples} samples do not fit into a tar of {tar_bytes} bytes")
    return IndexHeader(samples, record_bytes, tar_bytes, digest, tar_mtime_ns)


def _check_records(records: npt.NDArray[np.void], header: IndexHeader, path: Path) -> None:
    offsets, sizes, keys = records["offset"], records["size"], records["key"].tolist()
    # No sum overflows: both are at most the tar's length, which is below 2^63.
    if max(offsets.max(), sizes.max()) > header.tar_bytes or (offsets + sizes).max() > header.tar_bytes:
        raise _damaged(path, "a sample lies outside of the tar")
    if offsets[0] < _BLOCK_BYTES or (offsets[1:] < (offsets + sizes)[:-1] + np.uint64(_BLOCK_BYTES)).any():
        raise _damaged(path, "samples overlap")
    if len(set(keys)) != len(keys) or b"" in keys:
        raise _damaged(path, "a key is empty or occurs twice")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: the index is damaged ({what}); delete it and pack the shards again")
