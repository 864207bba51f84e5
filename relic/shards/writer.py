"""Write one shard: USTAR members with a fixed owner and time, its index and its listing, published at the end."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

import xxhash

from relic.errors import InputError
from relic.files import atomic_write, open_temporary, publish_once, sync_folder
from relic.shards.index import IndexRecord, index_path, write_index
from relic.shards.manifest import ShardInfo
from relic.shards.npy import aligned_header
from relic.shards.ustar import BLOCK_BYTES, ustar_header

_MAX_KEY_BYTES = 80
_WRITE_BACK_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
"""Writing one raw crop per call is 1.5 times slower: 1 MiB writes let the kernel use huge pages."""


class ShardWriter:
    """Write `path` (a .tar) with `.index` and `.jsonl` beside it.

    Used as a context manager. Leaving the block without an error publishes the three files, the tar last: a tar that
    exists is complete. Without a sample nothing is published. Leaving the block with an error removes the temporary
    files. The bytes depend on the samples alone.

    Several processes may write one shard at once, since each has temporary files of its own and none replaces a file
    that is there. If their bytes differ, all but the first fail: files of two of them are never mixed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: ShardInfo | None = None
        """The published shard; None without a sample."""
        self._records: list[IndexRecord] = []
        self._keys: set[str] = set()
        self._lines: list[str] = []
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._written_back = 0

    def __enter__(self) -> "ShardWriter":
        descriptor, self._temporary = open_temporary(self.path)
        self._file = open(descriptor, "wb", buffering=_BUFFER_BYTES)
        return self

    def add(self, key: str, suffix: str, payload: bytes, listing: dict[str, object]) -> None:
        """Append the member `key + suffix`; `listing` follows `key` in its line of the .jsonl.

        The header of an `.npy` payload gets more padding, so that its pixels begin at a multiple of 4,096 bytes.
        """
        if key in self._keys:
            raise InputError(f"{self.path}: two samples have the key {key}")
        if len(key.encode()) > _MAX_KEY_BYTES:
            raise InputError(f"{self.path}: the key {key} is longer than {_MAX_KEY_BYTES} bytes")
        payload_offset = self._offset + BLOCK_BYTES
        npy_header, replaced = aligned_header(payload, payload_offset) if suffix == ".npy" else (b"", 0)
        rest = memoryview(payload)[replaced:]
        digest = xxhash.xxh3_64(npy_header)
        digest.update(rest)
        size = len(npy_header) + len(rest)
        header = ustar_header(key + suffix, size)
        self._keys.add(key)
        self._records.append(IndexRecord(payload_offset, size, digest.intdigest(), key))
        self._lines.append(json.dumps({"key": key, **listing}))
        for part in (header, npy_header, rest, bytes(-size % BLOCK_BYTES)):
            self._write(part)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._records:
            self._discard()
            return
        try:
            self._write(bytes(2 * BLOCK_BYTES))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            write_index(index_path(self.path), self._records, self._offset, once=True)
            with atomic_write(self.path.with_suffix(".jsonl"), "w", once=True) as listing:
                listing.writelines(line + "\n" for line in self._lines)
            publish_once(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise
        sync_folder(self.path.parent)
        self.info = ShardInfo(self.path.name, len(self._records), self._offset, self._sha256.hexdigest())

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk the buffered bytes cannot be written either
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, part: bytes | memoryview) -> None:
        self._file.write(part)
        self._sha256.update(part)
        self._offset += len(part)
        if self._offset - self._written_back >= _WRITE_BACK_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        """Have the kernel start to store the written bytes, as this advice does. Else the last fsync waits for all."""
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            length = self._offset - self._written_back
            os.posix_fadvise(self._file.fileno(), self._written_back, length, os.POSIX_FADV_DONTNEED)
        self._written_back = self._offset
