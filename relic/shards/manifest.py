"""`train.json` / `val.json`: the shards of a finished split. Written last: where it exists, all shards do."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from relic.errors import InputError
from relic.files import write_json
from relic.options import Encoding

FORMAT_VERSION = 1
MEMBER_SUFFIX: dict[str, str] = {"raw": ".npy", "jpg": ".jpg", "png": ".png"}
assert set(MEMBER_SUFFIX) == set(get_args(Encoding))


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard: file name, samples, bytes of the tar, sha256 of the tar."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """Everything that decides a shard's bytes, besides the pixels."""

    split: str
    width: int
    height: int
    crop: str
    crops_per_image: int
    encoding: Encoding
    jpeg_quality: int
    decode: str
    samples_per_shard: int
    seed: int
    sources_sha256: str
    """sha256 over the listing: relative path and size in bytes of each source, in order."""
    libraries: dict[str, str]
    """Versions of the libraries that decode, resize and encode."""

    def difference(self, other: "Packing") -> str:
        """What differs, as `encoding: raw -> jpg; seed: 0 -> 1` (self -> other); empty when nothing differs."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return "; ".join(f"{name}: {mine[name]} -> {theirs[name]}" for name in mine if mine[name] != theirs[name])


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished split."""

    packing: Packing
    shards: tuple[ShardInfo, ...]
    accepted: int
    """Crops in the shards."""
    rejected: int
    """Sources without a crop; `SPLIT.rejected.jsonl` lists them with their reasons."""
    format_version: int = FORMAT_VERSION


def manifest_path(folder: Path, split: str) -> Path:
    """`FOLDER/train.json`."""
    return folder / f"{split}.json"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `SPLIT.json` atomically."""
    write_json(manifest_path(folder, manifest.packing.split), dataclasses.asdict(manifest))


def read_manifest(folder: Path, split: str) -> Manifest | None:
    """The split's manifest, or None where there is none. Raises InputError for a damaged one or another version."""
    path = manifest_path(folder, split)
    if not path.exists():
        return None
    return parse_manifest(path)


def parse_manifest(path: Path) -> Manifest:
    """Read the manifest `path`. Raises InputError for a damaged one or another version."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        version = value["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: shard format {version}, this relic reads {FORMAT_VERSION}; pack the shards again"
            )
        shards = tuple(ShardInfo(**shard) for shard in value["shards"])
        return Manifest(Packing(**value["packing"]), shards, value["accepted"], value["rejected"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest that relic wrote ({error}); pack the shards again") from error
