"""A packed split written to an object store: its shards, their indexes, and last the manifest."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from relic.errors import InputError
from relic.files import file_sha256
from relic.shards.index import index_path
from relic.shards.manifest import Manifest, ShardInfo, manifest_path
from relic.shards.packed_files import check_there
from relic.storage.objects import put_file
from relic.storage.run_copy import read_versions, version_of, write_versions
from relic.storage.urls import in_folder, without_secrets

_STREAMS = 4
"""Shards that are written at once."""

log = logging.getLogger(__name__)


def upload_split(folder: Path, manifest: Manifest, url: str) -> int:
    """Write a split to the folder `url`. Returns the number of shards that were written.

    A shard that an earlier call has written, and that is as it was then on both sides, is passed over. The manifest
    comes last, so a reader finds it only with all its shards. Raises InputError for a shard that differs from its
    manifest, and NetworkError; what was written until then is remembered.
    """
    upload = _Upload(folder, url)
    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="relic-upload") as pool:
        jobs = [pool.submit(upload.write, info) for info in manifest.shards]
        try:
            written = sum(job.result() for job in jobs)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    path = manifest_path(folder, manifest.packing.split)
    put_file(path, in_folder(url, path.name))
    return written


def check_packed_tar(tar: Path, info: ShardInfo) -> None:
    """Raise InputError for a tar of a packed set that is missing or changed."""
    check_there(tar)
    if file_sha256(tar) != info.sha256:
        raise InputError(f"{tar}: differs from its manifest; pack it again")


class _Upload:
    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._versions = read_versions(folder, url)
        self._recording = threading.Lock()

    def write(self, info: ShardInfo) -> bool:
        """Write one shard with its index; False if both are there."""
        tar, target = self._folder / info.name, in_folder(self._url, info.name)
        etag, _, sha256 = self._versions.get(info.name, "").partition(" ")
        if etag and sha256 == info.sha256 and version_of(target) == etag:
            return False
        check_packed_tar(tar, info)
        put_file(index_path(tar), in_folder(self._url, index_path(tar).name))
        etag = put_file(tar, target) or ""
        log.info("written: %s", without_secrets(target))
        with self._recording:
            self._versions[info.name] = f"{etag} {info.sha256}"
            write_versions(self._folder, self._url, self._versions)
        return True
