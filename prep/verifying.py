"""Check the files, hashes, headers, keys and pixels of a split against its manifest and indices. One line per fault."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import xxhash
from PIL import Image
from tqdm import tqdm

from prep.split_folder import read_lines
from relic.errors import InputError
from relic.files import open_regular
from relic.shards.index import index_path, read_index_header, read_records, shown_key
from relic.shards.manifest import MEMBER_SUFFIX, Manifest, Packing, ShardInfo
from relic.shards.npy import PAGE_BYTES, npy_header
from relic.shards.packed_files import check_there
from relic.shards.ustar import BLOCK_BYTES, ustar_header

_MOST_REST_BYTES = 1 << 20


class SplitReport(NamedTuple):
    """The number of samples and shards checked, and the faults found."""

    samples: int
    shards: int
    faults: list[str]


class _ShardReport(NamedTuple):
    keys: list[str]
    faults: list[str]


def verify_split(folder: Path, manifest: Manifest, *, threads: int) -> SplitReport:
    """Check all shards of a split, and what the manifest says of all shards together."""
    faults = list(_manifest_faults(folder, manifest))
    keys: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        reports = pool.map(lambda info: verify_shard(folder, info, manifest.packing), manifest.shards)
        bar = tqdm(reports, total=len(manifest.shards), desc=f"verify {manifest.packing.split}", disable=None)
        for info, report in zip(manifest.shards, bar, strict=True):
            faults += report.faults
            for key in report.keys:
                if key in keys:
                    faults.append(f"{info.name}: {key}: the key is also in {keys[key]}")
                keys[key] = info.name
    return SplitReport(len(keys), len(manifest.shards), faults)


def _manifest_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    split = manifest.packing.split
    counted = sum(info.samples for info in manifest.shards)
    if counted != manifest.accepted:
        yield f"{split}.json: accepted is {manifest.accepted}, but the shards hold {counted} samples"
    rejected = folder / f"{split}.rejected.jsonl"
    try:
        entries = [json.loads(line) for line in read_lines(rejected)]
        if len(entries) != manifest.rejected or not all({"source", "reason"} <= entry.keys() for entry in entries):
            yield f"{rejected.name}: does not list the {manifest.rejected} rejected images with source and reason"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        yield f"{rejected.name}: cannot be read ({error})"
    known = {info.name for info in manifest.shards}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        if path.name not in known:
            yield f"{path.name}: a shard that {split}.json does not list"


def verify_shard(folder: Path, info: ShardInfo, packing: Packing) -> _ShardReport:
    """Check one shard's three files. A tar that is missing or cut is one fault, not one per sample."""
    tar = folder / info.name
    keys: list[str] = []
    try:
        check_there(tar)
        size = tar.stat().st_size
        if size != info.bytes:
            return _ShardReport(keys, [f"{info.name}: {size} bytes, the manifest says {info.bytes}"])
        faults = [f"{info.name}: {fault}" for fault in _tar_faults(tar, info, packing, keys)]
    except InputError as error:
        return _ShardReport(keys, [str(error)])
    except OSError as error:
        return _ShardReport(keys, [f"{info.name}: cannot be read ({error.strerror})"])
    faults += [f"{tar.with_suffix('.jsonl').name}: {fault}" for fault in _listing_faults(tar, keys)]
    return _ShardReport(keys, faults)


def _tar_faults(tar: Path, info: ShardInfo, packing: Packing, keys: list[str]) -> Iterator[str]:
    """Read the tar once from start to end and compare it with its index; fills `keys`.

    The index decides every byte outside the payloads, so all of them are compared too.
    """
    header = read_index_header(index_path(tar))
    if (header.samples, header.tar_bytes) != (info.samples, info.bytes):
        yield (
            f"the index is for {header.samples} samples and {header.tar_bytes} bytes, "
            f"the manifest says {info.samples} and {info.bytes}"
        )
        return
    digest = hashlib.sha256()
    end = 0
    with open_regular(tar) as file:
        for record in read_records(index_path(tar)):
            key, offset, size = shown_key(record["key"]), int(record["offset"]), int(record["size"])
            keys.append(key)
            if offset != end + BLOCK_BYTES:
                yield f"{key}: the index places it at {offset}, not at {end + BLOCK_BYTES}"
                return
            head, payload, padding = file.read(BLOCK_BYTES), file.read(size), file.read(-size % BLOCK_BYTES)
            for part in (head, payload, padding):
                digest.update(part)
            end = offset + size + len(padding)
            yield from (f"{key}: {fault}" for fault in _sample_faults(head, payload, padding, key, record, packing))
        rest = file.read(_MOST_REST_BYTES)
    digest.update(rest)
    if rest != bytes(2 * BLOCK_BYTES):
        yield "does not end with two empty blocks after the last sample"
    if digest.hexdigest() != info.sha256:
        yield f"sha256 is {digest.hexdigest()}, the manifest says {info.sha256}"


def _sample_faults(
    head: bytes, payload: bytes, padding: bytes, key: str, record: "np.void", packing: Packing
) -> Iterator[str]:
    name = key + MEMBER_SUFFIX[packing.encoding]
    if head != ustar_header(name, len(payload)):
        yield f"the tar header is not that of {name}{_header_details(head)}"
    if any(padding):
        yield "the padding after it is not empty"
    if xxhash.xxh3_64_intdigest(payload) != int(record["xxh3"]):
        yield "its hash is not the one in the index"
    try:
        shape = _decode(payload, packing)
    except Exception as error:  # any error of a decoder on damaged bytes is a fault to report
        yield f"cannot be decoded ({' '.join(str(error).split())})"
        return
    if shape != (packing.height, packing.width, 3):
        yield f"decodes to {shape}, the manifest says {(packing.height, packing.width, 3)}"


def _header_details(head: bytes) -> str:
    try:
        member = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f" ({error})"
    return f" (name {member.name}, size {member.size}, mtime {member.mtime})"


def _decode(payload: bytes, packing: Packing) -> tuple[int, ...]:
    if packing.encoding == "raw":
        before = len(payload) - 3 * packing.width * packing.height
        if not 0 < before <= PAGE_BYTES or payload[:before] != npy_header(packing.height, packing.width, before):
            raise ValueError(f"not a .npy of a {packing.width}x{packing.height} crop")
        return (packing.height, packing.width, 3)
    if packing.encoding == "jpg":
        result: tuple[int, ...] = simplejpeg.decode_jpeg(payload, strict=True).shape
        return result
    with Image.open(io.BytesIO(payload)) as image:
        return np.asarray(image).shape


def _listing_faults(tar: Path, keys: list[str]) -> Iterator[str]:
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in read_lines(tar.with_suffix(".jsonl"))]
        found = [line["key"] for line in lines]
    except FileNotFoundError:
        yield "missing"
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"not a listing written by relic ({error})"
        return
    if found != keys:
        yield f"its {len(found)} keys are not the {len(keys)} keys of the index in the same order"
    for line in lines:
        if not {"source", "source_size", "crop_box"} <= line.keys():
            yield f"{line['key']}: without source, source_size or crop_box"
