"""The files in the folder of shards: a plan while packing, one record per finished shard, a manifest at the end.

    train.plan.json          written before the first shard: the Packing; removed after the manifest is written
    train-000000.index, .jsonl, .tar     published in this order, see `relic.shards.writer`
    train-000000.done.json   written after them: counts, hash and rejections of that shard
    train.rejected.jsonl, train.contact.png, then train.json; then the plan and the records are removed

A run can be killed at any moment. The next run keeps the shards that have a record and packs the others again.

Two processes may pack one shard at once, when the first is believed to be dead. Each file of a shard is published under
a temporary name of its own and replaces none that is there. So the tar always has the sha256 of the record: the second
process finds equal bytes, or it fails.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prep.part import PackingShare
from relic.errors import InputError
from relic.files import TEMPORARY_NAME, TEMPORARY_SUFFIX, atomic_write, read_bounded, remove_temporaries, write_json
from relic.shards.index import index_path
from relic.shards.manifest import (
    Manifest,
    Packing,
    ShardInfo,
    manifest_path,
    packing_of,
    read_json,
    read_manifest,
    shard_info_of,
)
from relic.shards.packed_files import uploaded_path
from relic.shards.shard_set import plan_path

_MOST_LISTING_BYTES = 1 << 32


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A source without a crop: its path in the listing, and the reason."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """A finished shard. `info` is None if every source was rejected, so that no file was published."""

    info: ShardInfo | None
    rejected: tuple[Rejection, ...]


class SplitFolder:
    """The files of one split in the folder of shards."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split

    def tar(self, shard: int) -> Path:
        return self.folder / f"{self.split}-{shard:06d}.tar"

    def uploaded(self) -> list[Path]:
        """What stands for tars that are at --out_url, see `prep.uploading`."""
        return self._own_files(r"\.uploaded")

    @property
    def rejected_path(self) -> Path:
        return self.folder / f"{self.split}.rejected.jsonl"

    @property
    def contact_path(self) -> Path:
        return self.folder / f"{self.split}.contact.png"

    def _record_path(self, shard: int) -> Path:
        return self.tar(shard).with_suffix(".done.json")

    def _own_files(self, pattern: str) -> list[Path]:
        """The split's numbered files. `pattern` matches the part of the name after the number."""
        return [path for _, path in self._numbered_files(pattern)]

    def _numbered_files(self, pattern: str) -> list[tuple[int, Path]]:
        name = re.compile(rf"{re.escape(self.split)}-(\d{{6,}}){pattern}")
        if not self.folder.is_dir():
            return []
        found = ((name.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(match[1]), path) for match, path in found if match]

    def manifest(self) -> Manifest | None:
        return read_manifest(self.folder, self.split)

    def check(self, packing: Packing, *, way_out: str, shared: bool = False) -> None:
        """Raise InputError, with the `way_out`, if the folder holds shards of this split from other images or flags.

        A packing that was stopped before its first shard is finished holds nothing to keep, unless the folder is
        `shared` with other processes that pack.
        """
        manifest = self.manifest()
        begun = manifest.packing if manifest else self._read_plan(way_out)
        if begun is None:
            if self._own_files(r"\.tar"):
                raise InputError(
                    f"--out_dir {self.folder}: holds {self.split} shards without a plan of prep; {way_out}"
                )
        elif (difference := begun.difference(packing)) and (
            manifest or shared or self._own_files(r"\.(tar|done\.json)")
        ):
            others = begun.sources_sha256 != packing.sources_sha256
            images = "images were added or removed, or have another size; " if others else ""
            raise InputError(
                f"--out_dir {self.folder}: {self.split} was packed differently ({images}{difference}); {way_out}"
            )

    def is_begun(self, packing: Packing) -> bool:
        """Whether the folder is unfinished and was begun with exactly `packing`."""
        if manifest_path(self.folder, self.split).exists():
            return False
        try:
            return self._read_plan() == packing
        except InputError:
            return False

    def bytes_used(self) -> int:
        """Bytes of the split's shards, finished or not."""
        return sum(path.stat().st_size for path in self._own_files(rf"\.(tar|index|jsonl)({TEMPORARY_NAME.pattern})?"))

    def _read_plan(self, way_out: str = "use another --out_dir") -> Packing | None:
        path = plan_path(self.folder, self.split)
        if not path.exists():
            return None
        try:
            return packing_of(read_json(path, "a plan", way_out), self.split)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a plan that relic wrote ({error}); {way_out}") from error

    def remove(self) -> None:
        """Remove all files of this split. The manifest is first, so that no reader opens a partly removed set."""
        manifest_path(self.folder, self.split).unlink(missing_ok=True)
        for path in self._own_files(r"\.(tar|uploaded|index|jsonl|done\.json)(\.tmp)?"):
            path.unlink(missing_ok=True)
        self.rejected_path.unlink(missing_ok=True)
        self.contact_path.unlink(missing_ok=True)
        plan_path(self.folder, self.split).unlink(missing_ok=True)

    def remove_unfinished(self, part: PackingShare) -> None:
        """Remove temporary files of writers that were killed: those of the shards of `part`.

        No other living process owns these shards. Files of the whole split are left to the process that owns it all.
        """
        whole = (manifest_path(self.folder, self.split), self.rejected_path, self.contact_path)
        for path in (*whole, plan_path(self.folder, self.split)) if part.of == 1 else ():
            path.with_name(path.name + TEMPORARY_SUFFIX).unlink(missing_ok=True)
            remove_temporaries(path)
        for shard, path in self._numbered_files(r"\..*\.tmp"):
            if part.has(shard):
                path.unlink(missing_ok=True)

    def begin(self, packing: Packing) -> None:
        """Write the plan, unless it is there. Another plan is that of a packing without a finished shard."""
        if self._read_plan() != packing:
            write_json(plan_path(self.folder, self.split), dataclasses.asdict(packing))

    def reopen(self, packing: Packing, manifest: Manifest, sources: list[list[str]]) -> None:
        """Replace a manifest, of which shards are missing, by a plan and records of the shards that are complete."""
        rejected = {entry.source: entry for entry in self.read_rejected()}
        infos = {info.name: info for info in manifest.shards}
        self.begin(packing)
        for shard, paths in enumerate(sources):
            bad = tuple(rejected[path] for path in paths if path in rejected)
            info = infos.get(self.tar(shard).name)
            if (info and self._is_whole(info)) or len(bad) == len(paths):
                self.finish_shard(shard, ShardRecord(info, bad))
        manifest_path(self.folder, self.split).unlink()

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every file of the manifest exists with its length."""
        return self.rejected_path.exists() and all(self._is_whole(info) for info in manifest.shards)

    def _is_whole(self, info: ShardInfo) -> bool:
        tar = self.folder / info.name
        return (
            (uploaded_path(tar).is_file() or (tar.is_file() and tar.stat().st_size == info.bytes))
            and index_path(tar).is_file()
            and tar.with_suffix(".jsonl").is_file()
        )

    def finish_shard(self, shard: int, record: ShardRecord) -> ShardRecord:
        """Record a shard whose files are published. Returns the record that counts: the first one.

        Raises InputError if that is of other crops.
        """
        try:
            write_json(self._record_path(shard), dataclasses.asdict(record), once=True)
        except InputError:
            first = self.finished_shard(shard)
            if first is None or first.info != record.info:
                raise
            return first
        return record

    def remove_shards(self, shards: Collection[int]) -> None:
        """Remove the records and files of shards, each tar before the files that describe it."""
        for suffix in ("done.json", "uploaded", "tar", "index", "jsonl"):
            for shard, path in self._numbered_files(rf"\.{re.escape(suffix)}"):
                if shard in shards:
                    path.unlink(missing_ok=True)

    def recorded_shards(self) -> int:
        """The number of shards that have a record, which is not read."""
        return len(self._own_files(r"\.done\.json"))

    def finished_shard(self, shard: int) -> ShardRecord | None:
        """The record of a shard; None if the shard must be packed."""
        try:
            value: dict[str, Any] = read_json(self._record_path(shard), "a record", "pack the shards again")
            info = shard_info_of(value["info"], self.split) if value["info"] else None
            record = ShardRecord(info, tuple(Rejection(**entry) for entry in value["rejected"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if info is None or self._is_whole(info) else None

    def packed_ns(self, shard: int) -> int:
        """When a shard was packed, in nanoseconds since 1970. Of one without a crop, when that was recorded."""
        for path in (
            self.tar(shard),
            uploaded_path(self.tar(shard)),
            self._record_path(shard),
            self.rejected_path,
        ):
            if path.exists():
                return path.stat().st_mtime_ns
        return 0

    def write_rejected(self, rejected: list[Rejection]) -> None:
        """Write `SPLIT.rejected.jsonl`, in the order of the listing."""
        with atomic_write(self.rejected_path, "w") as file:
            file.writelines(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in rejected)

    def read_rejected(self) -> list[Rejection]:
        """The entries of `SPLIT.rejected.jsonl`; empty if it is missing or damaged."""
        try:
            return [Rejection(**json.loads(line)) for line in read_lines(self.rejected_path)]
        except (OSError, ValueError, TypeError, RecursionError):
            return []

    def tidy(self) -> None:
        """Remove the plan, the records, and what workers that died left. Called after the manifest is written."""
        self.remove_unfinished(PackingShare())
        plan_path(self.folder, self.split).unlink(missing_ok=True)
        for path in self._own_files(r"\.done\.json"):
            path.unlink(missing_ok=True)


def read_lines(path: Path) -> list[str]:
    """The lines of a listing (`.jsonl`)."""
    return read_bounded(path, _MOST_LISTING_BYTES).decode().splitlines()
