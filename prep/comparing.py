"""Find images that changed after they were packed, also those whose length stayed the same.

An image is a suspect if the file system, or the object store, has it changed since its shard was written. Copying,
restoring or renaming images does that too. So the crops of suspects are made again and compared with the shard: only
other crops count.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import xxhash

from prep.engine import Engine, Finished
from prep.shard_worker import make_crops
from prep.split_folder import SplitFolder
from prep.tasks import CompareTask, KeyedSource, ShardTask
from relic.pictures.reasons import Unreadable
from relic.shards.index import index_path, key_bytes, read_records
from relic.shards.npy import aligned_header

_MARGIN_NS = 100_000_000
"""Clocks of file systems are coarser than that of the machine."""


def suspects(task: ShardTask, since_ns: int) -> tuple[KeyedSource, ...]:
    """The sources of a shard that the file system, or the store, has as changed after `since_ns`."""
    return tuple(keyed for keyed in task.sources if task.images.changed_ns(keyed.source) > since_ns - _MARGIN_NS)


def changed_images(
    tasks: Sequence[tuple[ShardTask, int]], rejected: Collection[str], *, engine: Engine, describe: Callable[..., str]
) -> dict[int, list[str]]:
    """By shard: the images whose crops are no longer those of the shard.

    `tasks`: shards that are packed, each with the time in nanoseconds when its packing began or ended. `rejected`: the
    sources that have no crop. A shard whose suspects are all unchanged is marked, so they are not compared again.
    """
    compared = []
    for task, since_ns in tasks:
        found = suspects(task, since_ns)
        if found:
            bad = frozenset(keyed.source.path for keyed in found) & frozenset(rejected)
            compared.append(CompareTask(**{**vars(task), "sources": found}, rejected=bad))
    changed: dict[int, list[str]] = {}
    for event in engine(compare_shard, compared, describe=describe) if compared else ():
        if isinstance(event, Finished):
            task = event.task
            if event.result:
                changed[task.shard] = event.result
            else:
                _mark(SplitFolder(task.out_dir, task.packing.split).tar(task.shard), task)
    return changed


def _mark(tar: Path, task: ShardTask) -> None:
    if tar.exists() and suspects(task, tar.stat().st_mtime_ns + _MARGIN_NS):
        os.utime(tar)


def compare_shard(task: CompareTask, report: Callable[[int], None]) -> list[str]:
    """The sources of the task whose crops differ from those in the shard. Runs in a worker."""
    index = index_path(SplitFolder(task.out_dir, task.packing.split).tar(task.shard))
    packed = {}
    if index.exists():
        records = read_records(index)
        packed = {key: (offset, digest) for offset, _, digest, key in records.tolist()}
    changed = []
    with task.images.ahead([keyed.source for keyed in task.sources]) as images:
        for number, keyed in enumerate(task.sources):
            report(number)
            was_rejected = keyed.source.path in task.rejected
            try:
                crops = make_crops(images, keyed, task.packing)
            except Unreadable:
                same = was_rejected
            else:
                stored = (_is_stored(crop.payload, packed.get(key_bytes(crop.key))) for crop in crops)
                same = not was_rejected and all(stored)
            if not same:
                changed.append(keyed.source.path)
    return changed


def _is_stored(payload: bytes, found: tuple[int, int] | None) -> bool:
    """Whether a sample of the shard, given by its offset and xxh3, has this payload. Its header has another padding."""
    if found is None:
        return False
    offset, expected = found
    header, replaced = aligned_header(payload, offset)
    digest = xxhash.xxh3_64(header)
    digest.update(memoryview(payload)[replaced:])
    return digest.intdigest() == expected
