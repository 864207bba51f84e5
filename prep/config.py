"""The flags of prep's command lines, checked before any data is touched."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from prep.part import PackingShare, part_of
from relic.errors import InputError
from relic.options import CropPlace, Decode, Encoding, EngineName
from relic.storage.objects import is_store
from relic.storage.run_copy import check_store
from relic.storage.stores import check_object_url
from relic.storage.urls import in_folder, without_secrets

SPLIT_FOLDERS = {"train": "train2017", "val": "val2017"}
_DEFAULT_SIDE = 224


@dataclasses.dataclass(frozen=True)
class PrepConfig:
    """Cut the images of COCO (or any two folders of images) into crops of one size and pack them into shards.

    To continue a run that was stopped, give the same command again.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input": ("coco_dir", "include_val", "max_bad"),
        "crops": ("size", "width", "height", "crop", "crops_per_image", "decode", "seed"),
        "shards": ("out_dir", "out_url", "encoding", "jpeg_quality", "samples_per_shard", "overwrite", "dry_run"),
        "machine": ("workers", "engine", "ray_address", "part"),
    }

    coco_dir: Path | str
    """Folder that holds train2017/ and val2017/ (.jpg .jpeg .png .bmp .webp .gif .tif .tiff, subfolders too), or its
    URL in an object store, such as s3://bucket/coco."""
    out_dir: Path = Path("shards")
    """Folder for the shards, their indices and manifests."""
    out_url: str | None = None
    """Folder of an object store, such as s3://bucket/set, that gets the shards: each tar is written there when it is
    packed, and removed from --out_dir. --out_dir keeps what a run needs to continue."""
    include_val: bool = True
    """Pack val2017/ as the split `val` too."""
    size: int | None = None
    """Width and height of a crop in pixels; 224 without --width and --height."""
    width: int | None = None
    """Width of a crop in pixels, for crops that are not square. Needs --height and replaces --size."""
    height: int | None = None
    """Height of a crop in pixels. Needs --width."""
    crop: CropPlace = "center"
    """Which window of an image is resized to the crop. center: the largest centred window of the crop's aspect ratio;
    random: seeded windows whose sides are 0.5 to 1 times those of the largest window."""
    crops_per_image: int = 1
    """Crops per image; more than one needs --crop random."""
    encoding: Encoding = "raw"
    """How a crop is stored: raw (uint8 pixels, no decode cost), jpg (4:4:4), or png (lossless, about half of
    raw)."""
    jpeg_quality: int = 95
    """Quality of --encoding jpg, 1 to 100."""
    decode: Decode = "exact"
    """How JPEGs are decoded. exact: at full size; fast: at 4/8, 3/8, 2/8 or 1/8 of the size, the smallest that still
    covers the crop."""
    samples_per_shard: int = 1000
    """Crops per shard."""
    workers: int = 0
    """Worker processes; 0: one per core that this process may use. With --engine ray, the shards that are packed at
    once; 0: one per core of the cluster."""
    engine: EngineName = "local"
    """What runs the workers. local: this machine; ray: a Ray cluster, whose nodes share the folders --coco_dir and
    --out_dir."""
    ray_address: str = "auto"
    """Address of the cluster for --engine ray. auto: the cluster that this machine belongs to; local: one of this
    machine alone, for a trial."""
    part: str | None = None
    """I/N: pack only the shards whose number leaves the remainder I when divided by N. Start N such commands, for
    example as a job array, in any order, at once or not. The last one to end writes the manifest."""
    seed: int = 0
    """Seed of the random windows and of the crops shown on the contact sheet."""
    max_bad: float = 0.01
    """Share of the images (0 to 1) that may be rejected. If more are rejected, the run fails."""
    dry_run: bool = False
    """Print the number of images, the bytes needed and the bytes free; write nothing."""
    overwrite: bool = False
    """Replace shards in --out_dir that were packed from other images or with other flags."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag. Reads no folder: `prep/planning.py` does."""
        if (self.width is None) != (self.height is None):
            raise InputError("--width and --height go together; for a square crop use --size")
        if self.size is not None and self.width is not None:
            raise InputError(
                f"--size {self.size}: contradicts --width and --height; give either --size or both of these"
            )
        for flag, value, least, most in (
            ("--size" if self.width is None else "--width", self.crop_width, 1, 8192),
            ("--height", self.crop_height, 1, 8192),
            ("--crops_per_image", self.crops_per_image, 1, 1000),
            ("--jpeg_quality", self.jpeg_quality, 1, 100),
            ("--samples_per_shard", self.samples_per_shard, 1, 1_000_000),
            ("--workers", self.workers, 0, 1024),
        ):
            if not least <= value <= most:
                raise InputError(f"{flag} {value}: choose from {least} to {most}")
        if self.shard_part.of > 1 and self.overwrite:
            raise InputError("--part: not with --overwrite, by which a late part would remove what others packed")
        if self.ray_address != "auto" and self.engine != "ray":
            raise InputError(f"--ray_address {self.ray_address}: needs --engine ray")
        if isinstance(self.coco_dir, str):
            _check_image_store(self.coco_dir, self.out_url)
        if self.out_url is not None:
            check_store(self.out_url, "--out_url")
            if self.overwrite:
                raise InputError(
                    "--out_url: not with --overwrite, runs may be reading what is there; choose another URL"
                )
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"--max_bad {self.max_bad}: a share of the images, from 0 to 1")
        if self.crops_per_image > 1 and self.crop == "center":
            raise InputError("--crops_per_image: all centre crops of an image are the same; add --crop random")
        if self.crops_per_image > self.samples_per_shard:
            raise InputError(
                "--crops_per_image: larger than --samples_per_shard, but all crops of an image go into one shard"
            )

    @property
    def splits(self) -> list[str]:
        """Names of the splits to pack."""
        return ["train", "val"] if self.include_val else ["train"]

    @property
    def shard_part(self) -> PackingShare:
        """The shards to pack."""
        return PackingShare() if self.part is None else part_of(self.part)

    @property
    def crop_width(self) -> int:
        """Width of a crop in pixels."""
        return self._side if self.width is None else self.width

    @property
    def crop_height(self) -> int:
        """Height of a crop in pixels."""
        return self._side if self.height is None else self.height

    @property
    def _side(self) -> int:
        return _DEFAULT_SIDE if self.size is None else self.size


def _check_image_store(url: str, out_url: str | None) -> None:
    """Raise InputError for a URL whose images cannot be listed, or among which the shards are written."""
    shown = without_secrets(url)
    if not is_store(url):
        raise InputError(
            f"--coco_dir {shown}: images are listed in s3://, gs:// and az:// only; copy those of other servers to a "
            "folder"
        )
    check_object_url(url, "--coco_dir")
    for name in SPLIT_FOLDERS.values():
        if out_url is not None and in_folder(out_url, "").startswith(in_folder(in_folder(url, name), "")):
            raise InputError(f"--out_url {without_secrets(out_url)}: is inside the images of --coco_dir {shown}")


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Check every hash, every header and the decoding of every sample in a folder of shards; exit 1 on any fault."""

    shards: Path
    """Folder written by prep/make_shards.py."""


@dataclasses.dataclass(frozen=True)
class UploadConfig:
    """Write packed shards, their indexes and manifests to an object store. What is there already is passed over."""

    shards: Path
    """Folder written by prep/make_shards.py."""
    url: str
    """Folder of an object store, such as s3://bucket/set. It gets the manifests last."""
