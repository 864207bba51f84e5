"""Divide the listed images into shards, and check the folder and the free disk space before any work."""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from prep.config import SPLIT_FOLDERS, PrepConfig
from prep.encoding import imaging_libraries
from prep.images import images_of
from prep.listing import crop_key_length, listing_sha256, unique_keys
from prep.part import PackingShare
from prep.split_folder import SplitFolder
from prep.tasks import KeyedSource, ShardTask
from prep.uploading import check_url
from relic.columns import counted
from relic.errors import InputError
from relic.files import check_folder, nearest_existing
from relic.shards.manifest import MOST_SHARDS, Packing
from relic.shards.npy import PAGE_BYTES
from relic.shards.ustar import BLOCK_BYTES
from relic.storage.urls import without_secrets

_NPY_BYTES = 128
_BESIDE_BYTES = 320
"""Bytes per sample in .index, .jsonl and tar padding, with a margin."""
_BITS_PER_PIXEL = {"jpg": 6.5, "png": 18.0}
"""JPEG at quality 95 4:4:4, and PNG. Measured on 224x224 crops of photographs: 5.1 and 16.0; here with a margin."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """One split: its shards and their folder."""

    packing: Packing
    folder: SplitFolder
    tasks: tuple[ShardTask, ...]
    part: PackingShare
    """The shards of them that this process packs."""
    overwrite: bool
    """Whether shards that were packed with other flags or images are replaced."""
    out_url: str | None
    """Where the shards go; None: they stay in the folder."""

    @property
    def own_tasks(self) -> list[ShardTask]:
        """The tasks of this process."""
        return [task for task in self.tasks if self.part.has(task.shard)]

    @property
    def images(self) -> int:
        return sum(len(task.sources) for task in self.tasks)

    @property
    def way_out(self) -> str:
        """What to do where the folder holds shards that this command would not write. Not all go with --overwrite."""
        if self.out_url is not None:
            return "use another --out_dir, and another --out_url"
        if self.part.of > 1:
            return f"use another --out_dir, or delete the {self.packing.split} files in this one"
        return f"use another --out_dir, or --overwrite to replace the {self.packing.split} shards"

    def bytes_needed(self) -> int:
        """Bytes that packing adds to the folder: exact for raw, estimated for jpg and png."""
        if self._replaces():
            return self._bytes_of(self.tasks) - self.folder.bytes_used()
        manifest = self.folder.manifest()
        if manifest is not None and self.folder.is_whole(manifest):
            return 0
        return self._bytes_of([task for task in self.tasks if self.folder.finished_shard(task.shard) is None])

    def bytes_at_once(self, workers: int) -> int:
        """Bytes that the folder holds at most while each worker packs a shard for --out_url."""
        return min(self.bytes_needed(), workers * max(self._bytes_of([task]) for task in self.tasks))

    def _bytes_of(self, tasks: Sequence[ShardTask]) -> int:
        images = sum(len(task.sources) for task in tasks)
        return images * self.packing.crops_per_image * _sample_bytes(self.packing)

    def _replaces(self) -> bool:
        """Whether the folder is emptied: with --overwrite, unless the same command had begun to pack it."""
        return self.overwrite and not self.folder.is_begun(self.packing)

    def check(self, *, shared: bool = False) -> None:
        """Raise InputError if the folder holds shards of other flags or images, and --overwrite was not given.

        `shared`: whether other processes pack into the folder.
        """
        check_url(self.folder, self.out_url)
        if not self.overwrite:
            self.folder.check(self.packing, way_out=self.way_out, shared=shared)

    def begin(self, *, shared: bool) -> None:
        """Remove what --overwrite replaces, check again, and write the plan: the caller holds the lock now."""
        if self._replaces():
            self.folder.remove()
        self.check(shared=shared)
        manifest = self.folder.manifest()
        if manifest is None:
            self.folder.begin(self.packing)
        elif not self.folder.is_whole(manifest):
            log.info("%s: some shards are missing; packing them again", self.packing.split)
            sources = [[keyed.source.path for keyed in task.sources] for task in self.tasks]
            self.folder.reopen(self.packing, manifest, sources)


def _sample_bytes(packing: Packing) -> int:
    pixels = packing.width * packing.height
    if packing.encoding == "raw":
        stored = _up_to(_up_to(3 * pixels, BLOCK_BYTES) + BLOCK_BYTES + _NPY_BYTES, PAGE_BYTES)
    else:
        stored = BLOCK_BYTES + int(pixels * _BITS_PER_PIXEL[packing.encoding] / 8) + 1024
    return stored + _BESIDE_BYTES


def _up_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def plan_splits(config: PrepConfig) -> list[SplitPlan]:
    """Divide each split's images into shards. Raises InputError for a folder that is missing, empty or unreadable."""
    _check_folders(config)
    libraries = imaging_libraries(config.encoding)
    return [_plan_split(config, split, libraries) for split in config.splits]


def _check_folders(config: PrepConfig) -> None:
    check_folder("--out_dir", config.out_dir)
    out_dir = config.out_dir.resolve()
    if isinstance(config.coco_dir, Path):
        for folder in (config.coco_dir / name for name in SPLIT_FOLDERS.values()):
            if folder.resolve() in (out_dir, *out_dir.parents):
                raise InputError(
                    f"--out_dir {config.out_dir}: is inside the image folder {folder}; choose another folder"
                )
        if not config.coco_dir.is_dir():
            raise InputError(f"--coco_dir {config.coco_dir}: no such folder")
    for split in config.splits:
        name = SPLIT_FOLDERS[split]
        if not images_of(config.coco_dir, name).exists():
            raise InputError(f"--coco_dir {_shown(config)}: holds no folder {name}{_way_out(split, config)}")


def _shown(config: PrepConfig) -> str:
    return without_secrets(str(config.coco_dir))


def _way_out(split: str, config: PrepConfig) -> str:
    if split == "val":
        return "; --include_val false packs train2017 alone"
    if isinstance(config.coco_dir, Path) and (config.coco_dir / SPLIT_FOLDERS["val"]).is_dir():
        link = config.coco_dir / SPLIT_FOLDERS["train"]
        return f"; to pack val2017 as train: ln -s val2017 {link}, then --include_val false"
    return ""


def _plan_split(config: PrepConfig, split: str, libraries: dict[str, str]) -> SplitPlan:
    images = images_of(config.coco_dir, SPLIT_FOLDERS[split])
    sources = images.sources()
    if not sources:
        raise InputError(f"--coco_dir {_shown(config)}: {SPLIT_FOLDERS[split]} holds no image{_way_out(split, config)}")
    packing = Packing(
        split=split,
        width=config.crop_width,
        height=config.crop_height,
        crop=config.crop,
        crops_per_image=config.crops_per_image,
        encoding=config.encoding,
        jpeg_quality=config.jpeg_quality,
        decode=config.decode,
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
        sources_sha256=listing_sha256(sources),
        libraries=libraries,
    )
    keys = unique_keys(sources, reserved_length=crop_key_length(config.crops_per_image))
    keyed = [KeyedSource(source, key) for source, key in zip(sources, keys, strict=True)]
    step = config.samples_per_shard // config.crops_per_image
    if len(keyed) > MOST_SHARDS * step:
        least = -(-len(keyed) // MOST_SHARDS) * config.crops_per_image
        raise InputError(
            f"--samples_per_shard {config.samples_per_shard}: {counted(-(-len(keyed) // step), 'shard')} for "
            f"{counted(len(keyed), 'image')}, a set has at most {MOST_SHARDS:,}; give {least} or more"
        )
    tasks = tuple(
        ShardTask(
            shard=number,
            sources=tuple(keyed[start : start + step]),
            images=images,
            out_dir=config.out_dir,
            packing=packing,
            out_url=config.out_url,
        )
        for number, start in enumerate(range(0, len(keyed), step))
    )
    return SplitPlan(
        packing=packing,
        folder=SplitFolder(config.out_dir, split),
        tasks=tasks,
        part=config.shard_part,
        overwrite=config.overwrite,
        out_url=config.out_url,
    )


def bytes_free(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or will be."""
    return shutil.disk_usage(nearest_existing(folder.resolve())).free


def check_disk(out_dir: Path, needed: int, encoding: str) -> None:
    """Raise InputError if `needed` bytes do not fit on the disk of `out_dir`."""
    free = bytes_free(out_dir)
    if needed > free:
        smaller = ", pack with --encoding jpg (about a sixth of raw)" if encoding != "jpg" else ""
        raise InputError(
            f"--out_dir {out_dir}: needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            f"delete files, choose another folder{smaller}"
        )
