"""A split of a folder of shards, opened for reading: which shards, how many samples, of what shape."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from relic.errors import InputError
from relic.shards.index import index_path, read_header
from relic.shards.manifest import Encoding, manifest_path, read_manifest


class ShardSet(NamedTuple):
    """The shards of one split, in order."""

    folder: Path
    split: str
    tars: tuple[Path, ...]
    samples: tuple[int, ...]
    """Samples in each shard."""
    height: int
    width: int
    encoding: Encoding
    fingerprint: str
    """sha256 over what decides the samples and their order: shards and their contents."""

    @property
    def num_samples(self) -> int:
        return sum(self.samples)


def plan_path(folder: Path, split: str) -> Path:
    """The record of a packing that has begun: it stands until the manifest does."""
    return folder / f"{split}.plan.json"


def open_shard_set(folder: Path, split: str, *, flag: str = "--shards") -> ShardSet:
    """Read a split's manifest and its shards' index headers; cheap, and touches no sample.

    Raises InputError, naming `flag` and the path, for a folder that is missing, empty, unfinished or incomplete, and
    for a shard whose length is not the one indexed.
    """
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder; python prep/make_shards.py makes one")
    manifest = read_manifest(folder, split)
    if manifest is None:
        if plan_path(folder, split).exists():
            raise InputError(f"{flag} {folder}: packing {split} was not finished; run the same make_shards.py again")
        name = manifest_path(folder, split).name
        raise InputError(f"{flag} {folder}: no {name} here; python prep/make_shards.py --out_dir {folder} makes it")
    headers = []
    for shard in manifest.shards:
        tar = folder / shard.name
        if not tar.exists():
            raise InputError(f"{tar}: the shard is missing; run the same make_shards.py again")
        header = read_header(index_path(tar))
        if not tar.stat().st_size == header.tar_bytes == shard.bytes or header.samples != shard.samples:
            raise InputError(f"{tar}: cut or changed since it was packed; run the same make_shards.py with --overwrite")
        headers.append(header)
    if not sum(header.samples for header in headers):
        raise InputError(f"{flag} {folder}: the {split} shards hold no sample")
    packing = manifest.packing
    identity = "".join(f"{h.samples}:{h.records_xxh3:016x};" for h in headers)
    return ShardSet(
        folder=folder,
        split=split,
        tars=tuple(folder / shard.name for shard in manifest.shards),
        samples=tuple(header.samples for header in headers),
        height=packing.height,
        width=packing.width,
        encoding=packing.encoding,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    )
