"""Shards behind URLs, fetched once into a local cache.

The cache is the folder `shards` of `--cache_dir`, without that flag `$XDG_CACHE_HOME/relic/shards`
(`~/.cache/relic/shards` without the variable). It holds one folder per folder of URLs, and in it the tars with their
indexes. A tar there is whole, and is not requested again. To fetch shards again, delete their folder.
"""

import functools
import logging
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from relic.cache import cache_folder, short_hash
from relic.errors import InputError
from relic.files import file_sha256
from relic.lock import lock
from relic.shards.index import index_path, most_index_bytes, read_index_header, read_records, write_index
from relic.shards.manifest import MOST_MANIFEST_BYTES, Manifest, ShardInfo, manifest_path, parse_manifest
from relic.shards.plain_webdataset import CutTarError, index_tar
from relic.shards.tar_indexes import mtime_stamp
from relic.storage.download import ATTEMPTS, MOST_SHARD_BYTES, download
from relic.storage.faults import FullDiskError, NetworkError, PermanentError
from relic.storage.urls import beside, file_name, is_pipe, without_secrets

_PACKED_BY_RELIC = re.compile(r"(train|val)-\d{6}\.tar")
_PARALLEL = 4
"""Shards that one process fetches at once."""

log = logging.getLogger(__name__)


class RemoteShard(NamedTuple):
    """A URL, and the path of its tar in the cache."""

    url: str
    tar: Path


def shards_folder(cache_dir: Path | None, *parts: str) -> Path:
    """The folder `parts` of --cache_dir; of the usual cache folder for None."""
    return cache_folder(*parts) if cache_dir is None else cache_dir.joinpath(*parts)


def _place(url: str, cache_dir: Path | None) -> RemoteShard:
    name = file_name(url)
    folder = beside(url, "") if name else url
    if not name:
        name = "shard.tar"
    elif not re.fullmatch(r"[\w-][\w.-]{,150}\.tar", name, re.ASCII):
        name = f"{short_hash(name)}.tar"
    return RemoteShard(url, shards_folder(cache_dir, "shards", short_hash(folder), name))


def fetch_shards(urls: Sequence[str], split: str, cache_dir: Path | None = None) -> list[Path]:
    """The tars of the cache for `urls`, in order; those that are missing are fetched.

    Several processes share the work: none fetches a shard that another is fetching. Raises NetworkError when a host
    cannot be reached, and InputError for a shard that does not exist or is damaged.
    """
    shards = [_place(url, cache_dir) for url in urls]
    missing = [shard for shard in shards if not shard.tar.exists()]
    if missing:
        _fetch_missing(shards, missing, split)
    return [shard.tar for shard in shards]


def _fetch_missing(shards: Sequence[RemoteShard], missing: Sequence[RemoteShard], split: str) -> None:
    first = without_secrets(missing[0].url)
    log.info("fetching %d of %d shards, %s first, into %s", len(missing), len(shards), first, missing[0].tar.parent)
    manifests: dict[Path, Manifest | None] = {}
    for shard in missing:
        folder = shard.tar.parent
        if folder not in manifests:
            folder.mkdir(parents=True, exist_ok=True)
            manifests[folder] = fetch_manifest(shard, split)
    missing = [shard for shard in shards if not shard.tar.exists()]
    stop = threading.Event()
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="relic-fetch") as pool:
        infos = {
            (folder, info.name): info
            for folder, manifest in manifests.items()
            for info in (manifest.shards if manifest else ())
        }
        jobs = [pool.submit(_fetch, s, infos.get((s.tar.parent, s.tar.name)), stop, wait_seconds=0) for s in missing]
        try:
            busy = [shard for shard, job in zip(missing, jobs, strict=True) if not job.result()]
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C: the running transfers end too
                stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for shard in busy:  # another process was fetching it; if that failed, it is fetched here
        _fetch(shard, infos.get((shard.tar.parent, shard.tar.name)), stop, wait_seconds=math.inf)


def locked(path: Path, *, wait_seconds: float = math.inf) -> AbstractContextManager[bool]:
    """The lock file `path` of the cache. Two downloads into one file would damage it, so locks are required here."""
    return lock(
        path, wait_seconds=wait_seconds, create=True, advice="choose a local disk by --cache_dir or XDG_CACHE_HOME"
    )


def fetch_manifest(shard: RemoteShard, split: str) -> Manifest | None:
    """The manifest beside a shard that is named as relic names them, or None.

    Shards in the cache that the manifest no longer describes are removed. `parse_manifest` has made sure that the names
    in both manifests are names of shards, so they cannot lead to other files.
    """
    if not _PACKED_BY_RELIC.fullmatch(file_name(shard.url)):
        return None
    folder = shard.tar.parent
    path = manifest_path(folder, split)
    with locked(path.with_suffix(".lock")):
        before = _readable_manifest(path, split)
        if not _fetch_optional(beside(shard.url, path.name), path, MOST_MANIFEST_BYTES):
            return None
        manifest = _readable_manifest(path, split)
        now = {info.name: info for info in manifest.shards} if manifest else {}
        for info in before.shards if before else ():
            if now.get(info.name) != info:
                (folder / info.name).unlink(missing_ok=True)
                index_path(folder / info.name).unlink(missing_ok=True)
        return manifest


def _fetch_optional(url: str, path: Path, most_bytes: int, stop: threading.Event | None = None) -> bool:
    """Fetch a file that may not exist; False where it does not.

    A `pipe:` command does not tell a missing file from a failed transfer; for other URLs that raises NetworkError.
    """
    try:
        attempts = 1 if is_pipe(url) else ATTEMPTS
        download(url, path, lambda temporary: None, attempts=attempts, most_bytes=most_bytes, stop=stop)
    except FullDiskError:
        raise
    except PermanentError:
        return False
    except NetworkError:
        if not is_pipe(url):
            raise
        return False
    return True


def _readable_manifest(path: Path, split: str) -> Manifest | None:
    if path.is_file():
        with suppress(InputError):  # for example a page that says 404, sent with code 200
            return parse_manifest(path, split)
        path.unlink(missing_ok=True)
    return None


def _fetch(shard: RemoteShard, info: ShardInfo | None, stop: threading.Event, *, wait_seconds: float) -> bool:
    """Fetch one shard with its index unless it is in the cache by now.

    Returns False when another process is still fetching it after `wait_seconds`.
    """
    with locked(shard.tar.with_name(shard.tar.name + ".lock"), wait_seconds=wait_seconds) as held:
        if held and not shard.tar.exists():
            most_bytes = info.bytes if info else MOST_SHARD_BYTES
            accept = functools.partial(_accept, shard, info, stop)
            download(shard.url, shard.tar, accept, most_bytes=most_bytes, stop=stop)
    return held


def check_tar(tar: Path, info: ShardInfo) -> None:
    """Raise InputError unless a tar is the one of the manifest."""
    if tar.stat().st_size != info.bytes or file_sha256(tar) != info.sha256:
        raise InputError("its bytes differ from the manifest beside it (sha256)")


def _accept(shard: RemoteShard, info: ShardInfo | None, stop: threading.Event, temporary: Path) -> None:
    """Check a fetched tar and write its index. Raises InputError to have the tar fetched again."""
    if info is not None:
        check_tar(temporary, info)
    if _fetch_index(shard, temporary, stop):
        return
    try:
        records = index_tar(temporary, None, name=without_secrets(shard.url))
    except CutTarError as error:
        raise CutTarError(str(error).removeprefix(f"{without_secrets(shard.url)}: ")) from error
    except InputError as error:
        # A whole tar that relic cannot read: fetching it again does not help.
        raise PermanentError(str(error)) from error
    status = temporary.stat()
    write_index(index_path(shard.tar), records, status.st_size, tar_mtime_ns=mtime_stamp(status))


def _fetch_index(shard: RemoteShard, tar: Path, stop: threading.Event) -> bool:
    """Fetch the index beside the URL; True if relic wrote it, for a tar of that length."""
    if not _PACKED_BY_RELIC.fullmatch(file_name(shard.url)):
        return False
    path = index_path(shard.tar)
    if not _fetch_optional(beside(shard.url, path.name), path, most_index_bytes(tar.stat().st_size), stop):
        return False
    try:
        header = read_index_header(path)
        read_records(path)
        if header.tar_bytes == tar.stat().st_size and not header.tar_mtime_ns:
            return True
    except InputError:
        pass
    path.unlink(missing_ok=True)
    return False
