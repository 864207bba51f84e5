"""Pack one split: unfinished shards in worker processes, then the rejections, the contact sheet, last the manifest."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from prep.comparing import changed_images
from prep.contact_sheet import write_contact_sheet
from prep.engine import Engine, Finished, RunningItems
from prep.owner import Owner
from prep.part import PackingShare
from prep.planning import SplitPlan
from prep.shard_worker import pack_shard
from prep.split_folder import Rejection, ShardRecord
from prep.tasks import ShardTask
from prep.uploading import finish_upload
from relic.columns import counted
from relic.errors import InputError
from relic.shards.manifest import Manifest, write_manifest

_ROUNDS = 3
"""How often a shard is packed whose images change meanwhile."""

_LATE_SECONDS = 90.0

log = logging.getLogger(__name__)


class PartSummary(NamedTuple):
    """What a run did for its part of a split that is not complete."""

    split: str
    part: PackingShare
    images: int
    shards: int
    missing: int
    """Shards that have no record yet."""

    def __str__(self) -> str:
        rest = f"{counted(self.missing, 'shard')} missing" if self.missing else "another part writes the manifest"
        packed = f"{counted(self.images, 'image')}, {counted(self.shards, 'shard')} packed"
        return f"{self.split}, part {self.part}: {packed}; {rest}"


class SplitSummary(NamedTuple):
    """What a run did for one split."""

    split: str
    images: int
    crops: int
    shards: int
    bytes: int
    rejected: Counter[str]
    """Number of rejected images per reason."""
    packed_images: int
    """Images read in this run. The shards of the others were finished before."""
    seconds: float
    already: bool
    """True when the split was packed before this run, and nothing was written."""

    def __str__(self) -> str:
        if self.already:
            return (
                f"{self.split}: already packed, {counted(self.crops, 'crop')} of {counted(self.images, 'image')}, "
                f"{counted(self.shards, 'shard')}"
            )
        bad = sum(self.rejected.values())
        rate = self.packed_images / max(self.seconds, 1e-9)
        lines = [
            f"{self.split}: {counted(self.crops, 'crop')} of {counted(self.images - bad, 'image')} in "
            f"{counted(self.shards, 'shard')}, {self.bytes / 1e6:,.1f} MB; "
            f"{counted(self.packed_images, 'image')} read at {rate:,.0f} images/s"
        ]
        if bad:
            lines.append(f"  rejected {bad:,} of {counted(self.images, 'image')}:")
            lines += [f"  {count:8,}  {reason}" for reason, count in self.rejected.most_common(20)]
        return "\n".join(lines)


def pack_split(plan: SplitPlan, *, engine: Engine, owner: Owner, max_bad: float) -> SplitSummary | PartSummary:
    """Pack what is missing of the owner's part of a split, and finish the split if no other part is missing.

    `plan.begin` was called. Raises InputError if more than `max_bad` of the images are rejected. Then the shards stay,
    without a manifest.
    """
    began = time.monotonic()
    split, folder = plan.packing.split, plan.folder
    folder.remove_unfinished(plan.part)
    if folder.manifest() is not None:
        _refuse_changed(plan, _changed(plan, plan.own_tasks, folder.read_rejected(), engine))
        packed = 0
    else:
        records = {task.shard: folder.finished_shard(task.shard) for task in plan.own_tasks}
        _forget_changed(plan, records, [task for task in plan.own_tasks if records[task.shard] is not None], engine)
        packed = _pack_missing(plan, records, engine)
    with owner.leaving(split) as others:
        manifest = folder.manifest()
        already = manifest is not None
        if manifest is None:
            missing = len(plan.tasks) - folder.recorded_shards()
            if owner.part.of > 1 and (missing or others()):
                images = sum(len(task.sources) for task in plan.own_tasks)
                return PartSummary(split, owner.part, images, len(plan.own_tasks), missing)
            manifest = _finish(plan, max_bad)
        if plan.out_url is not None:
            finish_upload(folder, manifest, plan.out_url)
        folder.tidy()
    seconds = time.monotonic() - began
    return _summary(plan, manifest, folder.read_rejected(), packed_images=packed, seconds=seconds, already=already)


def _finish(plan: SplitPlan, max_bad: float) -> Manifest:
    """Write what describes the whole split, the manifest last."""
    folder = plan.folder
    finished = _all_records(plan)
    if (manifest := folder.manifest()) is not None:
        return manifest
    rejected = [entry for record in finished for entry in record.rejected]
    folder.write_rejected(rejected)
    _check_share(plan, rejected, max_bad)
    shards = tuple(record.info for record in finished if record.info is not None)
    manifest = Manifest(plan.packing, shards, sum(info.samples for info in shards), len(rejected))
    write_contact_sheet(folder, manifest, plan.out_url)
    write_manifest(folder.folder, manifest)
    return manifest


def _all_records(plan: SplitPlan) -> list[ShardRecord]:
    """The records of all shards. Some network file systems show files of other hosts only after a minute.

    They may be incomplete when another process has written the manifest and removed them: NFS cannot lock folders.
    """
    deadline = time.monotonic() + _LATE_SECONDS
    while True:
        records = [plan.folder.finished_shard(task.shard) for task in plan.tasks]
        finished = [record for record in records if record is not None]
        if len(finished) == len(records) or plan.folder.manifest() is not None:
            return finished
        if time.monotonic() > deadline:
            missing = plan.folder.tar(records.index(None))
            raise InputError(f"{missing}: it or its record was removed meanwhile; run the command again")
        time.sleep(_LATE_SECONDS / 60)


def _pack_missing(plan: SplitPlan, records: dict[int, ShardRecord | None], engine: Engine) -> int:
    """Pack the shards that have no record, and again those of which an image changed meanwhile. Returns images read."""
    packed = 0
    changed: dict[int, list[str]] = {}
    for _ in range(_ROUNDS):
        todo = [task for task in plan.own_tasks if records[task.shard] is None]
        if not todo:
            return packed
        began_ns = time.time_ns()
        plan.folder.remove_shards({task.shard for task in todo})  # what a run that was killed published of them
        try:
            with (
                _progress_bar(plan, todo) as bar,
                contextlib.closing(_results(plan, todo, engine, bar)) as results,
            ):
                for shard, record in results:
                    records[shard] = record
        except BaseException:
            plan.folder.remove_unfinished(plan.part)
            raise
        packed += sum(len(task.sources) for task in todo)
        changed = _forget_changed(plan, records, todo, engine, began_ns)
    if changed:
        raise InputError(
            f"{_first_changed(plan, changed)}: changes while it is packed; run the command again when it is written"
        )
    return packed


def _forget_changed(
    plan: SplitPlan,
    records: dict[int, ShardRecord | None],
    tasks: Sequence[ShardTask],
    engine: Engine,
    since_ns: int | None = None,
) -> dict[int, list[str]]:
    """Remove the shards among `tasks` whose images changed since `since_ns`, or since they were packed."""
    done = [record for record in records.values() if record is not None]
    rejected = [entry for record in done for entry in record.rejected]
    changed = _changed(plan, tasks, rejected, engine, since_ns)
    for shard in changed:
        log.info("%s: images of it changed; packing it again", plan.folder.tar(shard).name)
        records[shard] = None
    if changed:
        plan.folder.remove_shards(changed)
    return changed


def _changed(
    plan: SplitPlan,
    tasks: Sequence[ShardTask],
    rejected: Sequence[Rejection],
    engine: Engine,
    since_ns: int | None = None,
) -> dict[int, list[str]]:
    timed = [(task, plan.folder.packed_ns(task.shard) if since_ns is None else since_ns) for task in tasks]
    return changed_images(
        timed,
        {entry.source for entry in rejected},
        engine=engine,
        describe=lambda task, item: _describe(plan, task, item),
    )


def _first_changed(plan: SplitPlan, changed: dict[int, list[str]]) -> str:
    return repr(plan.tasks[0].images.name_of(changed[min(changed)][0]))


def _refuse_changed(plan: SplitPlan, changed: dict[int, list[str]]) -> None:
    if changed:
        count = sum(map(len, changed.values()))
        raise InputError(
            f"--out_dir {plan.folder.folder}: {count:,} of the {plan.packing.split} images changed since they were "
            f"packed, the first is {_first_changed(plan, changed)}; {plan.way_out}"
        )


def _progress_bar(plan: SplitPlan, todo: Sequence[ShardTask]) -> "tqdm[Any]":
    images, left = (sum(len(task.sources) for task in some) for some in (plan.own_tasks, todo))
    tqdm.monitor_interval = 0
    return tqdm(
        total=images,
        initial=images - left,
        desc=plan.packing.split,
        unit="image",
        disable=None,
        dynamic_ncols=True,
    )


def _results(
    plan: SplitPlan, todo: list[ShardTask], engine: Engine, bar: "tqdm[Any]"
) -> Generator[tuple[int, ShardRecord], None, None]:
    """Yield the record of each unfinished shard when it is done, and keep the bar at the number of images done."""
    done = bar.n
    events = engine(pack_shard, todo, describe=lambda task, item: _describe(plan, task, item))
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, RunningItems):
                bar.update(done + event.running_items - bar.n)
                continue
            assert isinstance(event, Finished)
            done += len(event.task.sources)
            yield event.task.shard, event.result


def _describe(plan: SplitPlan, task: ShardTask, item: int) -> str:
    return f"{plan.folder.tar(task.shard).name}, image {task.images.name_of(task.sources[item].source.path)}"


def _check_share(plan: SplitPlan, rejected: list[Rejection], max_bad: float) -> None:
    if len(rejected) <= max_bad * plan.images and len(rejected) < plan.images:
        return
    (reason, count), *_ = Counter(entry.reason for entry in rejected).most_common(1)
    way_out = "nothing is left to pack" if len(rejected) == plan.images else "repair them or raise --max_bad"
    raise InputError(
        f"--max_bad {max_bad}: {len(rejected):,} of {plan.images:,} {plan.packing.split} images were rejected "
        f"({count:,}: {reason}), listed in {plan.folder.rejected_path}; {way_out}"
    )


def _summary(
    plan: SplitPlan,
    manifest: Manifest,
    rejected: list[Rejection],
    *,
    packed_images: int,
    seconds: float,
    already: bool,
) -> SplitSummary:
    return SplitSummary(
        split=plan.packing.split,
        images=plan.images,
        crops=manifest.accepted,
        shards=len(manifest.shards),
        bytes=sum(info.bytes for info in manifest.shards),
        rejected=Counter(entry.reason for entry in rejected),
        packed_images=packed_images,
        seconds=seconds,
        already=already,
    )
