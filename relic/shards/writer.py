"""Write one shard: USTAR members with fixed owner and time, its index and its listing, published by rename."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

import xxhash

from relic.errors import InputError
from relic.files import TEMPORARY_SUFFIX, atomic_write, sync_folder
from relic.shards.index import IndexRecord, index_path, write_index
from relic.shards.manifest import ShardInfo
from relic.shards.ustar import BLOCK_BYTES, ustar_header

_MAX_KEY_BYTES = 80
_SEND_OFF_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
"""A raw crop a call would cost half as much again: the kernel takes large pieces in large pages."""


class ShardWriter:
    """Write `path` (a .tar) with `.index` and `.jsonl` beside it.

    Used as a context manager. Leaving the block without an error publishes the three files, the tar last, so a tar
    that stands is complete; leaving it with one removes what was begun. The bytes are a function of the samples alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: ShardInfo | None = None
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._records: list[IndexRecord] = []
        self._keys: set[str] = set()
        self._lines: list[str] = []
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._sent_off = 0

    def __enter__(self) -> "ShardWriter":
        self._file = self._temporary.open("wb", buffering=_BUFFER_BYTES)
        return self

    def add(self, key: str, suffix: str, payload: bytes, listing: dict[str, object]) -> None:
        """Append the member `key + suffix`; `listing` becomes its line of the .jsonl after `key`."""
        if key in self._keys:
            raise InputError(f"{self.path}: two samples have the key {key}")
        if len(key.encode()) > _MAX_KEY_BYTES:
            raise InputError(f"{self.path}: the key {key} is longer than {_MAX_KEY_BYTES} bytes")
        header = ustar_header(key + suffix, len(payload))
        padding = bytes(-len(payload) % BLOCK_BYTES)
        self._keys.add(key)
        self._records.append(
            IndexRecord(self._offset + len(header), len(payload), xxhash.xxh3_64_intdigest(payload), key)
        )
        self._lines.append(json.dumps({"key": key, **listing}))
        for part in (header, payload, padding):
            self._write(part)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._write(bytes(2 * BLOCK_BYTES))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            write_index(index_path(self.path), self._records, self._offset)
            with atomic_write(self.path.with_suffix(".jsonl"), "w") as listing:
                listing.writelines(line + "\n" for line in self._lines)
            os.replace(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise
        sync_folder(self.path.parent)
        self.info = ShardInfo(self.path.name, len(self._records), self._offset, self._sha256.hexdigest())

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk what is buffered finds no place either
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, part: bytes) -> None:
        self._file.write(part)
        self._sha256.update(part)
        self._offset += len(part)
        if self._offset - self._sent_off >= _SEND_OFF_BYTES:
            self._send_off()

    def _send_off(self) -> None:
        """Have the kernel begin to store what is written, as this advice does, or it all waits for the last fsync."""
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            length = self._offset - self._sent_off
            os.posix_fadvise(self._file.fileno(), self._sent_off, length, os.POSIX_FADV_DONTNEED)
        self._sent_off = self._offset
