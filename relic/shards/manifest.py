"""`train.json` / `val.json`: the shards of a finished split. Written last: where it exists, all shards do.

A manifest may come from a web server, so nothing in it is used before `manifest_of` has checked it.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from relic.errors import InputError
from relic.files import read_bounded, write_json
from relic.options import CropPlace, Decode, Encoding

FORMAT_VERSION = 1
MEMBER_SUFFIX: dict[str, str] = {"raw": ".npy", "jpg": ".jpg", "png": ".png"}
assert set(MEMBER_SUFFIX) == set(get_args(Encoding))
MAX_SIDE = 8192
"""Pixels of the longest side that a crop may have."""
MOST_MANIFEST_BYTES = 64 << 20
MOST_SHARDS = 350_000
"""Of a set: their manifest has no more bytes."""
_LEAST_SAMPLE_BYTES = 512
"""A sample's header in the tar."""
_MOST_NUMBER = 2**63 - 1


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
        mine, theirs = self._parts(), other._parts()
        names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        return "; ".join(f"{name}: {mine.get(name, 'none')} -> {theirs.get(name, 'none')}" for name in names)

    def _parts(self) -> dict[str, object]:
        parts = dataclasses.asdict(self)
        versions = parts.pop("libraries")
        return parts | {f"library {name}": version for name, version in versions.items()}


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
    if not os.path.lexists(path):  # a link that leads nowhere is no missing manifest
        return None
    return parse_manifest(path, split)


def parse_manifest(path: Path, split: str) -> Manifest:
    """Read the manifest `path` of `split`. Raises InputError for a damaged one or another version."""
    value = read_json(path, "a manifest", "pack the shards again")
    try:
        version = value["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise InputError(
                f"{path}: shard format {str(version)[:20]}, this relic reads {FORMAT_VERSION}; pack the shards again"
            )
        return manifest_of(value, split)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest that relic wrote ({_short(error)}); pack the shards again") from error


def read_json(path: Path, what: str, way_out: str) -> Any:
    """The value of a JSON file, which is `what`. Raises InputError, with the way out, for anything else."""
    try:
        return json.loads(read_bounded(path, MOST_MANIFEST_BYTES))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not {what} that relic wrote ({_short(error)}); {way_out}") from error


def manifest_of(value: Mapping[str, Any], split: str) -> Manifest:
    """The checked manifest in `value`. Raises ValueError, KeyError or TypeError for what relic does not write."""
    packing = packing_of(value["packing"], split)
    shards = tuple(shard_info_of(shard, split) for shard in value["shards"])
    if len({info.name for info in shards}) != len(shards):
        raise ValueError("a shard is listed twice")
    return Manifest(packing, shards, _number(value, "accepted", 0), _number(value, "rejected", 0))


def packing_of(value: Mapping[str, Any], split: str) -> Packing:
    """The checked packing in `value`. Raises ValueError, KeyError or TypeError for what relic does not write."""
    packing = Packing(**value)
    if packing.split != split:
        raise ValueError(f"split is {_short(packing.split)}, not {split}")
    for name, least, most in (
        ("width", 1, MAX_SIDE),
        ("height", 1, MAX_SIDE),
        ("crops_per_image", 1, _MOST_NUMBER),
        ("jpeg_quality", 1, 100),
        ("samples_per_shard", 1, _MOST_NUMBER),
    ):
        _number(value, name, least, most)
    if type(packing.seed) is not int:
        raise ValueError(f"seed is {_short(packing.seed)}, not a whole number")
    for name, choices in (("crop", CropPlace), ("encoding", Encoding), ("decode", Decode)):
        if value[name] not in get_args(choices):
            raise ValueError(f"{name} is {_short(value[name])}, not one of {', '.join(get_args(choices))}")
    if not isinstance(packing.sources_sha256, str) or not re.fullmatch(r"[0-9a-f]{0,64}", packing.sources_sha256):
        raise ValueError(f"sources_sha256 is {_short(packing.sources_sha256)}")
    libraries = packing.libraries
    if not isinstance(libraries, dict) or not all(isinstance(part, str) for part in libraries.values()):
        raise ValueError("libraries is not a table of versions")
    return packing


def shard_info_of(value: Mapping[str, Any], split: str) -> ShardInfo:
    """The checked entry of one shard. Raises ValueError, KeyError or TypeError for what relic does not write."""
    info = ShardInfo(**value)
    if not isinstance(info.name, str) or not re.fullmatch(rf"{split}-[0-9]{{6,12}}\.tar", info.name):
        raise ValueError(f"a shard is called {_short(info.name)}, not {split}-000000.tar")
    _number(value, "bytes", 1)
    _number(value, "samples", 0, info.bytes // _LEAST_SAMPLE_BYTES)
    _sha256(info.sha256)
    return info


def _number(value: Mapping[str, Any], name: str, least: int, most: int = _MOST_NUMBER) -> int:
    number = value[name]
    if type(number) is not int or not least <= number <= most:
        raise ValueError(f"{name} is {_short(number)}, not a whole number from {least} to {most}")
    return number


def _sha256(text: object) -> None:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{_short(text)} is no sha256")


def _short(value: object) -> str:
    """Up to 80 characters of a value for a message: a damaged file may hold anything."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
