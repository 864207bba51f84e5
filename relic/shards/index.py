"""The index beside a shard: the place, hash and key of each sample, as binary records of one size.

64-byte header | samples x record

header: magic, version, bytes per record, samples, bytes of the tar, xxh3-64 of all records, mtime of the tar in
        nanoseconds (0 for shards that relic packed: they may be copied), 16 zeros (little endian)
record: offset u64, size u64 (of the image member's payload inside the tar), xxh3-64 of that payload, key
        (ASCII or UTF-8, padded with zeros to the longest key of the shard)
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from relic.errors import InputError
from relic.files import atomic_write

SUFFIX = ".index"
_MAGIC = b"RELICIDX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQ16x")


class IndexRecord(NamedTuple):
    """One sample: payload offset and size in bytes, xxh3-64 of the payload, key."""

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
    """`train-000000.tar` -> `train-000000.index`, in the same folder."""
    return tar.with_suffix(SUFFIX)


def record_dtype(record_bytes: int) -> npt.DTypeLike:
    """The numpy structured dtype of one record of `record_bytes` bytes (memory-mappable)."""
    return np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3", "<u8"), ("key", f"S{record_bytes - 24}")])


def write_index(
    path: Path, records: Sequence[IndexRecord], tar_bytes: int, *, tar_mtime_ns: int = 0, tag: str = ""
) -> None:
    """Write the index of a shard of `tar_bytes` bytes atomically (`tag`: see `atomic_write`)."""
    keys = [record.key.encode() for record in records]
    widest = max((len(key) for key in keys), default=1)
    record_bytes = 24 + -(-widest // 8) * 8
    table = np.zeros(len(records), record_dtype(record_bytes))
    for row, record, key in zip(table, records, keys, strict=True):
        row["offset"], row["size"], row["xxh3"], row["key"] = record.offset, record.size, record.xxh3, key
    with atomic_write(path, tag=tag) as file:
        file.write(index_bytes(table, tar_bytes, tar_mtime_ns))


def index_bytes(table: npt.NDArray[np.void], tar_bytes: int, tar_mtime_ns: int = 0) -> bytes:
    """The index file of a shard whose records are `table` (of `record_dtype`)."""
    data = table.tobytes()
    digest = xxhash.xxh3_64_intdigest(data)
    return _HEADER.pack(_MAGIC, _VERSION, table.itemsize, len(table), tar_bytes, digest, tar_mtime_ns) + data


def read_header(path: Path) -> IndexHeader:
    """Read the first 64 bytes. Raises InputError when the file is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER.size)
    except FileNotFoundError:
        raise InputError(f"{path}: the shard's index is missing; pack the shards again") from None
    if len(raw) < _HEADER.size or raw[:8] != _MAGIC:
        raise InputError(f"{path}: not an index that relic wrote; delete it and pack the shards again")
    _, version, record_bytes, samples, tar_bytes, digest, tar_mtime_ns = _HEADER.unpack(raw)
    if version != _VERSION:
        raise InputError(f"{path}: index version {version}, this relic reads {_VERSION}; pack the shards again")
    return IndexHeader(samples, record_bytes, tar_bytes, digest, tar_mtime_ns)


def read_records(path: Path) -> npt.NDArray[np.void]:
    """All records as a structured array (`offset`, `size`, `xxh3`, `key`), checked against the header's hash."""
    header = read_header(path)
    data = path.read_bytes()[_HEADER.size :]
    if len(data) != header.samples * header.record_bytes or xxhash.xxh3_64_intdigest(data) != header.records_xxh3:
        raise InputError(f"{path}: the index is damaged; delete it and pack the shards again")
    return np.frombuffer(data, record_dtype(header.record_bytes))
