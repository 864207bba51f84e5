"""The crops for the benchmarks: packed by prep in each encoding, and as JPEG files with the same bytes."""

from pathlib import Path
from typing import NamedTuple

import prep.make_shards
import samples.build
from relic.errors import InputError
from relic.options import Encoding
from relic.pictures.listing import list_sources
from relic.shards.index import index_path, read_records
from relic.shards.shard_set import ShardSet, open_shard_set

_SAMPLE_IMAGES = 120
_CROPS_PER_SHARD = 500
_MAX_CROPS_PER_IMAGE = 1000


class Crops(NamedTuple):
    """The same crops in four forms."""

    raw: ShardSet
    jpg: ShardSet
    png: ShardSet | None
    """None where it was not asked for."""
    loose: Path
    """Folder with the JPEGs of `jpg` as files."""


def prepare_crops(folder: Path, images: Path | None, crops: int, cores: int, *, png: bool = True) -> Crops:
    """Pack at least `crops` random crops of 224x224 into `folder`. Shards of an earlier run are used again.

    `images`: a folder of images, or of COCO's layout; None builds photographs from installed packages. There is at
    least one shard per core, so that loaders that divide whole shards among workers can use all cores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    coco_dir, crops_per_image = _sources(folder, images, crops)
    shards = -(-crops // (_CROPS_PER_SHARD * cores)) * cores
    samples_per_shard = max(crops_per_image, crops // shards)

    def pack(encoding: Encoding) -> ShardSet:
        return _pack(coco_dir, folder / encoding, encoding, crops_per_image, samples_per_shard)

    jpg = pack("jpg")
    return Crops(pack("raw"), jpg, pack("png") if png else None, _write_loose(jpg, folder / "loose"))


def _sources(folder: Path, images: Path | None, crops: int) -> tuple[Path, int]:
    """Make a folder of COCO's layout with links to at most `crops` images. Returns it and the crops per image."""
    found = listed_images(folder, images, min(_SAMPLE_IMAGES, crops))
    count = min(len(found), crops)
    if crops > count * _MAX_CROPS_PER_IMAGE:
        raise InputError(f"--images {images}: {len(found)} images give at most {count * _MAX_CROPS_PER_IMAGE} crops")
    chosen = folder / "coco" / "train2017"
    chosen.mkdir(parents=True, exist_ok=True)
    for link in chosen.iterdir():
        link.unlink()
    for number in range(count):
        source = found[number * len(found) // count]
        (chosen / f"{number:06d}{source.suffix}").symlink_to(source.resolve())
    return chosen.parent, -(-crops // count)


def pack_samples(build: str, *packs: str) -> None:
    """Run samples/build.py with the flags `build`, then prep/make_shards.py with each of `packs`."""
    commands = [(samples.build.main, build), *((prep.make_shards.main, flags) for flags in packs)]
    if any(main_of(flags.split()) for main_of, flags in commands):
        raise InputError("the sample crops could not be made; the line above says why")


def listed_images(folder: Path, images: Path | None, sample_images: int = _SAMPLE_IMAGES) -> list[Path]:
    """The images in the folder `images`, or in its train2017/. None builds `sample_images` photographs in `folder`."""
    if images is None:
        images = folder / "photographs"
        if samples.build.main(["--out", str(images), "--train", str(sample_images), "--val", "1"]):
            raise InputError("the sample photographs could not be built; the line above says why, or give --images")
    return images_in(images)


def images_in(images: Path) -> list[Path]:
    """The images in a folder, or in its train2017/. Raises InputError where there is none."""
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder")
    listed = images / "train2017" if (images / "train2017").is_dir() else images
    found = [listed / source.path for source in list_sources(listed)]
    if not found:
        raise InputError(f"--images {images}: holds no image")
    return found


def _pack(coco_dir: Path, out: Path, encoding: Encoding, crops_per_image: int, samples_per_shard: int) -> ShardSet:
    flags = {
        "coco_dir": coco_dir,
        "out_dir": out,
        "include_val": "false",
        "crop": "random",
        "crops_per_image": crops_per_image,
        "encoding": encoding,
        "jpeg_quality": 95,
        "samples_per_shard": samples_per_shard,
    }
    if prep.make_shards.main([text for flag, value in flags.items() for text in (f"--{flag}", str(value))]):
        raise InputError(f"packing {out} failed; the line above says why (use a new --work_dir to start again)")
    return open_shard_set(out, "train")


def _write_loose(shards: ShardSet, folder: Path) -> Path:
    """Write each sample of `shards` to its own file."""
    folder.mkdir(exist_ok=True)
    for tar in shards.tars:
        with tar.open("rb") as file:
            for offset, size, _, key in read_records(index_path(tar)).tolist():
                path = folder / f"{key.decode()}.jpg"
                if not path.exists() or path.stat().st_size != size:
                    file.seek(offset)
                    path.write_bytes(file.read(size))
    return folder
