"""A split of a folder of shards, opened for reading: its shards, their samples, the shape of the crops."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import xxhash

from relic.cache import cache_folder
from relic.errors import InputError
from relic.files import errors_named, open_regular
from relic.options import Encoding, Split
from relic.shards.image_header import Geometry, read_geometry
from relic.shards.index import IndexHeader, index_path, read_index_header, read_records, shown_key
from relic.shards.manifest import Manifest, Packing, ShardInfo, manifest_path, parse_manifest, read_manifest
from relic.shards.packed_files import check_packed
from relic.shards.plain_webdataset import COMPRESSED_TAR, PACK, check_geometry, refuse_compressed
from relic.shards.splits import select_split
from relic.shards.tar_indexes import TarIndex, ensure_indexes


class ServedShard(NamedTuple):
    """A shard on a server."""

    name: str
    """Its URL, as messages show it."""
    read: Callable[[int, int], memoryview]
    """Brings bytes of the tar: their offset, their number."""
    ensure_index: Callable[[], None]
    """Brings the index, unless it is there."""


_CHECKED_AT_START = 4096
"""The largest number of packed shards that are all looked at when their set is opened. To look at 100,000 takes seconds
on a local disk and minutes on a network. In a larger set a shard is looked at when it is first read."""

_CHECK_THREADS = 16
_OF_TARS = "tars:"
"""Begins a fingerprint that was made of the sha256 of all tars."""
_SHA256_DIGITS = 64


class ShardSet(NamedTuple):
    """The shards of one split, in order."""

    folder: Path
    split: str
    tars: tuple[Path, ...]
    indexes: tuple[Path, ...]
    """The index of each tar."""
    tar_bytes: tuple[int, ...]
    """Length of each tar."""
    samples: tuple[int, ...]
    """Samples in each shard."""
    height: int
    width: int
    encoding: Encoding
    fingerprint: str
    """sha256 over what decides the samples and their order: the shards and their contents. See `has_fingerprint`."""
    remotes: tuple[ServedShard, ...] = ()
    """For each shard, what brings it while it is not there. Empty if all shards are there."""
    unchecked: tuple[ShardInfo, ...] = ()
    """The manifest's entry of each shard where its files were not looked at yet; otherwise empty."""

    def check(self, number: int) -> None:
        """Bring the index of a shard that is on a server. Of one that was not looked at yet, see that it fits.

        Raises InputError if the shard is not what the manifest says, and NetworkError. Threads may call it at once.
        """
        if self.remotes:
            self.remotes[number].ensure_index()
        if self.unchecked:
            check_packed(self.tars[number], self.unchecked[number])

    def has_fingerprint(self, recorded: str) -> bool:
        """Whether `recorded` is the fingerprint of this set, or the one that earlier versions gave it.

        They took the hashes of the tars without saying so, or those of the indexes. A set that is on a server then has
        to bring all of these.
        """
        if recorded in (self.fingerprint, self.fingerprint.removeprefix(_OF_TARS)):
            return True
        if recorded.startswith(_OF_TARS):
            return False
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            list(pool.map(self.check, range(len(self.tars))))
        return recorded == _fingerprint(self.samples, map(_index_digest, map(read_index_header, self.indexes)))

    @property
    def num_samples(self) -> int:
        return sum(self.samples)


def plan_path(folder: Path, split: str) -> Path:
    """The record of a packing that is not finished: it is removed once the manifest is written."""
    return folder / f"{split}.plan.json"


def open_shard_set(folder: Path, split: str, *, flag: str = "--shards") -> ShardSet:
    """Open a split of a folder: the one its manifest describes, or without a manifest that of any WebDataset.

    With a manifest this reads the index headers and no sample; of more than 4,096 shards it takes the manifest's word,
    and `ShardSet.check` looks at each shard later. Without a manifest the split's tars (`select_split`) are read once
    and indexed. Raises InputError, naming `flag` and the path, for a folder that is missing, empty, unfinished or
    incomplete, and for a shard whose length is not the indexed one.
    """
    if not folder.is_dir():
        if folder.exists():
            with open_regular(folder) as file:
                refuse_compressed(file.read(8), f"{flag} {folder}")
            raise InputError(f"{flag} {folder}: neither a folder nor called *.tar")
        raise InputError(f"{flag} {folder}: no such folder; python prep/make_shards.py makes one")
    manifest = read_manifest(folder, split)
    if manifest is not None:
        return _open_packed(folder, split, manifest, flag)
    if plan_path(folder, split).exists():
        raise InputError(f"{flag} {folder}: packing {split} was not finished; run the same make_shards.py again")
    tars = [Path(tar) for tar in select_split([str(tar) for tar in sorted(folder.glob("*.tar"))], split)]
    if not tars:
        name = manifest_path(folder, split).name
        compressed = next((path for path in sorted(folder.iterdir()) if COMPRESSED_TAR.fullmatch(path.name)), None)
        if compressed is not None:
            raise InputError(
                f"{flag} {folder}: no {name} here and no {split} tar, but {compressed.name}; unpack such files, "
                "samples are read at their places in a tar"
            )
        raise InputError(
            f"{flag} {folder}: no {name} here and no {split}-*.tar; "
            f"python prep/make_shards.py --out_dir {folder} makes them"
        )
    return open_tars(tars, split, folder, flag=flag)


def _open_packed(folder: Path, split: str, manifest: Manifest, flag: str) -> ShardSet:
    if not any(shard.samples for shard in manifest.shards):
        raise InputError(f"{flag} {folder}: the {split} shards hold no sample")
    opened = _packed_set(folder, folder, manifest.packing, manifest.shards)
    if len(opened.tars) <= _CHECKED_AT_START:
        for tar, shard in zip(opened.tars, manifest.shards, strict=True):
            check_packed(tar, shard)
        return opened
    return opened._replace(unchecked=manifest.shards)


def open_parts(
    folder: Path, shown: Path, packing: Packing, shards: Sequence[ShardInfo], remotes: Sequence[ServedShard]
) -> ShardSet:
    """Open shards on a server. Tars and indexes come into `folder` later. Messages call them `shown`."""
    return _packed_set(folder, shown, packing, shards)._replace(remotes=tuple(remotes))


def _packed_set(folder: Path, shown: Path, packing: Packing, shards: Sequence[ShardInfo]) -> ShardSet:
    """The set of shards of a manifest. Opens no file."""
    tars = [folder / shard.name for shard in shards]
    contents = [_Contents(shard.samples, shard.bytes, shard.sha256) for shard in shards]
    geometry = Geometry(packing.encoding, packing.height, packing.width)
    return _set_of(shown, packing.split, tars, list(map(index_path, tars)), contents, geometry)


def open_tars(tars: Sequence[Path], split: str, folder: Path, *, flag: str = "--shards") -> ShardSet:
    """Open tars without a manifest. Messages and reports call them `folder`.

    Encoding and size are those of the first image. Raises InputError for what `scan_tar` refuses, and for a key in two
    shards.
    """
    seen: set[Path] = set()
    for tar in tars:
        if not tar.is_file():
            raise InputError(f"{flag} {folder}: {tar}: {'not a regular file' if tar.exists() else 'no such tar'}")
        if (place := tar.resolve()) in seen:
            raise InputError(f"{flag} {folder}: {tar}: named twice; each sample is read once")
        seen.add(place)
    indexes = ensure_indexes(tars)
    filled = next((place for place, index in enumerate(indexes) if index.header.samples), None)
    if filled is None:
        raise InputError(f"{flag} {folder}: the {split} shards hold no sample")
    shards = _shard_set(folder, split, tars, indexes, _first_image(tars[filled], indexes[filled].path))
    _refuse_shared_keys(shards)
    return shards


def _shard_set(
    folder: Path, split: str, tars: Sequence[Path], indexes: Sequence[TarIndex], geometry: Geometry
) -> ShardSet:
    digests = _manifest_digests(tars, [index.header for index in indexes])
    contents = [
        _Contents(index.header.samples, index.header.tar_bytes, digest or _index_digest(index.header))
        for index, digest in zip(indexes, digests, strict=True)
    ]
    return _set_of(folder, split, tars, [index.path for index in indexes], contents, geometry)


def _manifest_digests(tars: Sequence[Path], headers: Sequence[IndexHeader]) -> list[str]:
    """The sha256 of each tar that a manifest beside it describes; empty for another one.

    So tars that are named one by one have the fingerprint of their folder.
    """
    infos: dict[Path, ShardInfo] = {}
    for place in {manifest_path(tar.parent, tar.name.partition("-")[0]) for tar in tars}:
        if place.stem in get_args(Split) and place.is_file():
            with suppress(InputError):
                infos |= {place.parent / info.name: info for info in parse_manifest(place, place.stem).shards}
    digests = []
    for tar, header in zip(tars, headers, strict=True):
        info = infos.get(tar)
        # Another program's tar, indexed here, has its time in the index.
        fits = info and (info.samples, info.bytes, 0) == (header.samples, header.tar_bytes, header.tar_mtime_ns)
        digests.append(info.sha256 if info and fits else "")
    return digests


def _index_digest(header: IndexHeader) -> str:
    return f"{header.records_xxh3:016x}"


class _Contents(NamedTuple):
    """What is known of a shard."""

    samples: int
    tar_bytes: int
    digest: str
    """sha256 of the tar, or of a tar without a manifest the hash of its index, in hex."""


def _set_of(
    folder: Path,
    split: str,
    tars: Sequence[Path],
    indexes: Sequence[Path],
    contents: Sequence[_Contents],
    geometry: Geometry,
) -> ShardSet:
    samples = tuple(each.samples for each in contents)
    of_tars = all(len(each.digest) == _SHA256_DIGITS for each in contents)
    return ShardSet(
        folder=folder,
        split=split,
        tars=tuple(tars),
        indexes=tuple(indexes),
        tar_bytes=tuple(each.tar_bytes for each in contents),
        samples=samples,
        height=geometry.height,
        width=geometry.width,
        encoding=geometry.encoding,
        fingerprint=(_OF_TARS if of_tars else "") + _fingerprint(samples, (each.digest for each in contents)),
    )


def _fingerprint(samples: Sequence[int], digests: Iterable[str]) -> str:
    identity = "".join(f"{count}:{digest};" for count, digest in zip(samples, digests, strict=True))
    return hashlib.sha256(identity.encode()).hexdigest()


def _first_image(tar: Path, index: Path) -> Geometry:
    record = read_records(index)[0]
    with errors_named(tar), open_regular(tar) as file:
        file.seek(int(record["offset"]))
        payload = file.read(int(record["size"]))
    geometry = read_geometry(memoryview(payload))
    sample = f"{tar}: sample {shown_key(record['key'])}"
    if geometry is None:
        raise InputError(f"{sample}: neither a uint8 npy of (height, width, 3), JPEG nor PNG; {PACK}")
    check_geometry(geometry, sample)
    return geometry


def _refuse_shared_keys(shards: ShardSet) -> None:
    """Refuse a key that is in two shards. Checked once per set: the cache keeps the fingerprints of good sets."""
    passed = cache_folder("unique-keys", shards.fingerprint)
    if os.access(passed, os.F_OK):
        return
    digests = np.concatenate(
        [
            np.fromiter(map(xxhash.xxh3_64_intdigest, read_records(index)["key"].tolist()), np.uint64)
            for index in shards.indexes
        ]
    )
    values, counts = np.unique(digests, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    owners: dict[bytes, Path] = {}
    for tar, index in zip(shards.tars, shards.indexes, strict=True) if repeated else ():
        for key in read_records(index)["key"].tolist():
            if xxhash.xxh3_64_intdigest(key) in repeated and owners.setdefault(key, tar) != tar:
                raise InputError(
                    f"{tar}: sample {shown_key(key)}: {owners[key].name} has a sample of that key too; {PACK}"
                )
    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    except OSError:
        pass  # checked again the next time
