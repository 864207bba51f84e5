"""The indexes of tars that relic did not write: found beside a tar or in the cache folder, or made once."""

import errno
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from relic.cache import cache_folder, short_hash
from relic.errors import InputError
from relic.lock import lock
from relic.shards.image_header import Geometry
from relic.shards.index import IndexHeader, IndexRecord, index_path, is_index, read_index_header, write_index
from relic.shards.plain_webdataset import index_tar, scan_tar

log = logging.getLogger(__name__)


class TarIndex(NamedTuple):
    """The path of a tar's index, and its header."""

    path: Path
    header: IndexHeader


def cached_index_path(tar: Path) -> Path:
    """The path of the index of a tar in a folder that cannot be written to."""
    return cache_folder("indexes", short_hash(str(tar.resolve().parent)), index_path(tar).name)


def find_index(tar: Path) -> TarIndex | None:
    """A tar's index that still fits it, beside the tar or in the cache folder.

    Files that are no index of relic are passed over, and damaged ones: they are made anew. Raises InputError for a
    shard that relic packed and whose length is not the indexed one.
    """
    status = tar.stat()
    for path in (index_path(tar), cached_index_path(tar)):
        if not is_index(path):
            continue
        try:
            header = read_index_header(path)
        except InputError:
            continue
        same_size = header.tar_bytes == status.st_size
        if not header.tar_mtime_ns and not same_size:
            raise InputError(f"{tar}: cut or changed since it was packed; run the same make_shards.py with --overwrite")
        if same_size and header.tar_mtime_ns in (0, mtime_stamp(status)):
            return TarIndex(path, header)
    return None


def mtime_stamp(status: os.stat_result) -> int:
    """The tar's mtime as an index holds it. 0 stands for shards that relic packed, so 1970-01-01 becomes 1 ns."""
    return status.st_mtime_ns % 2**64 or 1


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
    """Write the index of `tar`, which has that size and mtime, beside it; where that fails, into the cache folder.

    A file of another program that has the name of the index is left as it is.
    """
    beside = index_path(tar)
    taken = os.path.lexists(beside) and not is_index(beside)
    try:
        if taken:
            raise FileExistsError(errno.EEXIST, f"{beside.name} is not relic's")
        write_index(beside, records, status.st_size, tar_mtime_ns=mtime_stamp(status))
    except OSError as error:
        path = cached_index_path(tar)
        log.info("%s: cannot be written to (%s); its index goes to %s", tar.parent, error.strerror, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, records, status.st_size, tar_mtime_ns=mtime_stamp(status))
