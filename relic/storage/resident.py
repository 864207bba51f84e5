"""Sets of shards in a cache of bounded size.

A part of the shards, chosen once, is brought into the cache and stays there. Samples of the others are read from the
server, each when it is needed, and so are those of a shard that is not there yet: the work begins at once, and no state
of the cache can stop it. Every epoch reads each sample once, so no other choice of shards is found in the cache more
often. Where half the set fits, this one is found there 0.5 of the times, the least recently used shards only 0.16.

The cache is the folder `parts` of `--cache_dir`, without that flag `$XDG_CACHE_HOME/relic/parts`, with a folder per
folder of URLs. Only `*.tar` files there are ever removed.
"""

import atexit
import functools
import hashlib
import logging
import math
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from relic.cache import short_hash
from relic.errors import InputError
from relic.files import atomic_write, write_json
from relic.shards.index import IndexHeader, index_path, most_index_bytes, parse_index, read_index_header
from relic.shards.manifest import ShardInfo, read_json
from relic.shards.shard_set import ServedShard, ShardSet, open_parts
from relic.storage.cache import RemoteShard, check_tar, fetch_manifest, locked, shards_folder
from relic.storage.download import DISK_RESERVE_BYTES, download
from relic.storage.faults import NetworkError
from relic.storage.objects import is_object, read_range, read_small
from relic.storage.urls import beside, file_name, without_secrets

_BLOCK_BYTES = 4096
"""Of a disk: a file takes whole ones."""
_STREAMS = 4
"""Shards that are fetched at once."""
_POLL_SECONDS = 1.0
"""Between two looks whether the process that fetches has ended."""
_AGAIN_SECONDS = 30.0
"""After the network failed. What is not in the cache would be read from the server in every epoch."""
_END_SECONDS = 5.0

_CLEAN = "clean"
"""Written beside the choice when the folder holds nothing else."""

log = logging.getLogger(__name__)


def choose_residents(shards: Sequence[ShardInfo], room_bytes: int) -> list[ShardInfo]:
    """The shards that stay in the cache: in the order of a hash of their names, each that still fits."""
    chosen, left = [], room_bytes
    for info in sorted(shards, key=lambda info: hashlib.sha256(info.name.encode()).digest()):
        if _bytes_on_disk(info) <= left:
            chosen.append(info)
            left -= _bytes_on_disk(info)
    return chosen


def _bytes_on_disk(info: ShardInfo) -> int:
    return -(-info.bytes // _BLOCK_BYTES) * _BLOCK_BYTES


class CacheRoom:
    """What is left of `--cache_gb`, in `--cache_dir`, for the next set that is opened."""

    def __init__(self, cache_gb: float, cache_dir: Path | None = None) -> None:
        self.cache_gb = cache_gb
        self.cache_dir = cache_dir
        self.left_bytes = round(cache_gb * 1e9)


def open_bounded(urls: Sequence[str], split: str, room: CacheRoom, *, flag: str) -> ShardSet:
    """Open shards with a cache of what is left in `room`, take that from it, and begin to fill the cache.

    Raises InputError naming `flag` for URLs that are not those of one set packed by relic, and NetworkError.
    """
    first = without_secrets(urls[0])
    folders = {beside(url, "") for url in urls if is_object(url)}
    names = [file_name(url) for url in urls]
    if len(folders) != 1 or not all(map(is_object, urls)):
        raise InputError(f"{flag} {first}: with --cache_gb, all shards are in one folder of http, s3, gs or az")
    read_range(urls[0], 0, 1)  # a server that does not send parts, or that allows nothing, is found now
    folder = shards_folder(room.cache_dir, "parts", short_hash(folders.pop()))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = fetch_manifest(RemoteShard(urls[0], folder / names[0]), split)
    if manifest is None:
        raise InputError(
            f"{flag} {first}: --cache_gb needs shards of prep/make_shards.py with their {split}.json beside them; "
            "without the flag, any tars are fetched whole"
        )
    infos = {info.name: info for info in manifest.shards}
    if unknown := [name for name in names if name not in infos]:
        raise InputError(f"{flag} {first}: {unknown[0][:100]} is not in the manifest beside it")
    chosen = [infos[name] for name in names]
    residents = choose_residents(chosen, room.left_bytes)
    kept_bytes = sum(map(_bytes_on_disk, residents))
    _check_disk(folder, split, kept_bytes, room)
    url_of = dict(zip(names, urls, strict=True))
    _Filler(folder, split, [(url_of[info.name], info) for info in residents]).begin()
    room.left_bytes -= kept_bytes
    log.info(
        "%s: %d of %d %s shards stay in the cache, %.2f GB", first, len(residents), len(urls), split, kept_bytes / 1e9
    )
    if not residents:
        least_gb = min(map(_bytes_on_disk, chosen)) / 1e9
        log.warning(
            "--cache_gb %g: has no room for a %s shard, the smallest has %.2g GB; all are read from the server",
            room.cache_gb, split, least_gb,
        )  # fmt: skip
    served = [
        ServedShard(
            without_secrets(url),
            functools.partial(read_range, url, patient=True),
            functools.partial(_ensure_index, url, info, folder),
        )
        for url, info in zip(urls, chosen, strict=True)
    ]
    return open_parts(folder, Path(without_secrets(beside(urls[0], ""))), manifest.packing, chosen, served)


def _check_disk(folder: Path, split: str, kept_bytes: int, room: CacheRoom) -> None:
    """Raise InputError if the disk cannot hold what is to stay. Another process may be fetching it meanwhile."""
    free = shutil.disk_usage(folder).free - DISK_RESERVE_BYTES  # before what is there is counted: that grows
    there = 0
    for path in folder.glob(f"{split}-*.tar*"):
        with suppress(FileNotFoundError):
            there += path.stat().st_blocks * 512
    if kept_bytes > free + there:
        earlier_bytes = round(room.cache_gb * 1e9) - room.left_bytes
        fitting_gb = math.floor((earlier_bytes + max(0, free + there)) / 1e7) / 100
        raise InputError(
            f"--cache_gb {room.cache_gb:g}: {kept_bytes / 1e9:.2f} GB of {split} shards do not fit on the disk of "
            f"{folder}; give --cache_gb {fitting_gb:g}, or another disk by --cache_dir"
        )


def _ensure_index(url: str, info: ShardInfo, folder: Path) -> None:
    """Bring the index of a shard, unless it is there. Several processes and threads may do so at once."""
    path = index_path(folder / info.name)
    if _is_there(path, info):
        return
    with locked(path.with_name(path.name + ".lock")):
        if _is_there(path, info):
            return
        index_url = beside(url, path.name)
        data, _ = read_small(index_url, most_index_bytes(info.bytes))
        try:
            if not _fits(parse_index(data, path)[0], info):
                raise InputError("does not fit the manifest beside it; pack the shards again")
        except InputError as error:
            raise InputError(f"{without_secrets(index_url)}: {str(error).removeprefix(f'{path}: ')}") from None
        with atomic_write(path) as file:
            file.write(data)


def _is_there(path: Path, info: ShardInfo) -> bool:
    try:
        return _fits(read_index_header(path), info)
    except (InputError, OSError):
        return False


def _fits(header: IndexHeader, info: ShardInfo) -> bool:
    return (header.tar_bytes, header.samples, header.tar_mtime_ns) == (info.bytes, info.samples, 0)


class _Filler:
    """Brings the residents into the cache, in threads of one process at a time; the others take over if it ends.

    The folder holds residents and parts of them, nothing else: so it is never over the bound, whoever is killed when.
    The command that began last decides which the residents are. Another one then stops filling, and reads the rest from
    the server.
    """

    def __init__(self, folder: Path, split: str, residents: list[tuple[str, ShardInfo]]) -> None:
        self._folder = folder
        self._split = split
        self._residents = residents
        self._stop = threading.Event()
        self._names = [[info.name, info.sha256] for _, info in residents]
        self._choice = folder / f"{split}.residents.json"
        self._waiting: list[tuple[str, ShardInfo]] = []
        self._taking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="relic-filler", daemon=True)

    def begin(self) -> None:
        """Remove what is not to stay, and start to fetch what is missing."""
        with locked(self._folder / f"{self._split}.choice.lock"):
            if self._chosen() != [self._names, _CLEAN]:
                write_json(self._choice, [self._names, "to be cleaned"])
                # Whoever fills for another choice has seen this one, or has ended.
                with locked(self._folder / f"{self._split}.filler.lock"):
                    self._remove_others()
                write_json(self._choice, [self._names, _CLEAN])
        atexit.register(self._end)
        self._thread.start()

    def _is_chosen(self) -> bool:
        chosen = self._chosen()
        return isinstance(chosen, list) and chosen[:1] == [self._names]

    def _chosen(self) -> object:
        try:
            return read_json(self._choice, "a list of shards", "it is made anew")
        except (InputError, OSError):
            return None

    def _remove_others(self) -> None:
        keep = {info.name: info for _, info in self._residents}
        for path in list(self._folder.glob(f"{self._split}-*.tar*")):
            try:
                check_tar(path, keep[path.name])
            except (KeyError, InputError):
                path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.is_set() and self._is_chosen():
            with locked(self._folder / f"{self._split}.filler.lock", wait_seconds=0) as held:
                if held:
                    self._fill()
                    return
            self._stop.wait(_POLL_SECONDS)

    def _fill(self) -> None:
        self._waiting = [(url, info) for url, info in self._residents if not (self._folder / info.name).exists()]
        if not self._waiting:
            return
        log.info("fetching %d shards into %s, while the work goes on", len(self._waiting), self._folder)
        threads = [threading.Thread(target=self._fetch_some, daemon=True) for _ in range(_STREAMS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                if not self._is_chosen():
                    self._stop.set()
                thread.join(_POLL_SECONDS)

    def _fetch_some(self) -> None:
        while not self._stop.is_set() and self._is_chosen():
            with self._taking:
                if not self._waiting:
                    return
                url, info = self._waiting.pop(0)
            try:
                check = functools.partial(check_tar, info=info)
                download(url, self._folder / info.name, check, most_bytes=info.bytes, stop=self._stop)
            except NetworkError as error:
                if not self._stop.is_set():
                    log.warning("%s; trying again in %.0f s", error, _AGAIN_SECONDS)
                with self._taking:
                    self._waiting.append((url, info))
                self._stop.wait(_AGAIN_SECONDS)
            except (InputError, OSError) as error:
                log.warning("%s; its samples are read from there", error)

    def _end(self) -> None:
        """Before Python ends: a thread that is in obstore then would abort the process."""
        self._stop.set()
        self._thread.join(_END_SECONDS)
