"""The flags of prep's command lines, checked before any data is touched."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from relic.errors import InputError
from relic.options import Crop, Decode, Encoding

SPLIT_FOLDERS = {"train": "train2017", "val": "val2017"}
_DEFAULT_SIDE = 224


@dataclasses.dataclass(frozen=True)
class PrepConfig:
    """Cut the images of COCO (or any two folders of images) into crops of one size and pack them into shards.

    A run that was stopped goes on where it was when the same command is given again.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input": ("coco_dir", "include_val", "max_bad"),
        "crops": ("size", "width", "height", "crop", "crops_per_image", "decode", "seed"),
        "shards": ("out_dir", "encoding", "jpeg_quality", "samples_per_shard", "overwrite", "dry_run"),
        "machine": ("workers",),
    }

    coco_dir: Path
    """Folder that holds train2017/ and val2017/ (.jpg .jpeg .png .bmp .webp .gif .tif .tiff, subfolders too)."""
    out_dir: Path = Path("shards")
    """Folder for the shards, their indices and manifests."""
    include_val: bool = True
    """Pack val2017/ as the split `val` too."""
    size: int | None = None
    """Width and height of a crop in pixels; 224 without --width and --height."""
    width: int | None = None
    """Width of a crop in pixels, when it is not square; goes with --height, in the place of --size."""
    height: int | None = None
    """Height of a crop in pixels; goes with --width."""
    crop: Crop = "center"
    """center: the largest centred window of the crop's shape, resized; random: seeded windows of half to full size."""
    crops_per_image: int = 1
    """Crops cut from each image (more than one goes with --crop random)."""
    encoding: Encoding = "raw"
    """How a crop is stored: raw (uint8 pixels, no decode cost), jpg (4:4:4), or png (lossless, slow to decode)."""
    jpeg_quality: int = 95
    """Quality of --encoding jpg, 1 to 100."""
    decode: Decode = "exact"
    """fast: read JPEGs at 4, 3, 2 or 1 eighths of their size, the least that still covers the crop."""
    samples_per_shard: int = 1000
    """Crops in a shard."""
    workers: int = 0
    """Worker processes; 0: one for each core this process may use."""
    seed: int = 0
    """Seed of the random windows and of the contact sheet's choice."""
    max_bad: float = 0.01
    """Share of the images (0 to 1) that may be rejected; above it the run fails."""
    dry_run: bool = False
    """Say what would be done, the bytes needed and the bytes free; write nothing."""
    overwrite: bool = False
    """Replace shards in --out_dir that were packed from other inputs or with other options."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag. Reads no folder: `prep/planning.py` does."""
        if (self.width is None) != (self.height is None):
            raise InputError("--width and --height go together; for a square use --size")
        if self.size is not None and self.width is not None:
            raise InputError(f"--size {self.size}: contradicts --width and --height; leave one of the two out")
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
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"--max_bad {self.max_bad}: a share of the images, from 0 to 1")
        if self.crops_per_image > 1 and self.crop == "center":
            raise InputError("--crops_per_image: centre crops of one image are all alike; add --crop random")
        if self.crops_per_image > self.samples_per_shard:
            raise InputError("--crops_per_image: larger than --samples_per_shard, but an image's crops share a shard")

    @property
    def splits(self) -> list[str]:
        """Names of the splits to pack."""
        return ["train", "val"] if self.include_val else ["train"]

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


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Check every hash, header and pixel decode of a folder of shards; exit 1 on any fault."""

    shards: Path
    """Folder that make_shards.py wrote."""
