"""Build COCO-like folders from Debian's photographic wallpapers: `python samples/wallpapers.py --out DIR` (as root)."""

import dataclasses
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m samples.wallpapers`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import InputError, RefusedError, before_work, command
from relic.files import check_folder, temporary_folder

_PACKAGES = ("plasma-workspace-wallpapers", "lomiri-wallpapers-20.04", "lomiri-wallpapers-16.04")
_NOT_PHOTOGRAPHS = (
    "screenshot", "Flow", "Honeywave", "PastelHills", "Shell", "Volna", "string", "rhythm", "Painting-Colors",
    "summer_1am", "Kite", "Grey", "seeding_by", "Patak", "Altai", "MilkyWay",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WallpapersConfig:
    """Cut OUT/train2017 and OUT/val2017 from 28 photographs in Debian packages. Needs apt-get and root."""

    out: Path
    """Folder to make."""
    train: int = 2000
    """Number of images in train2017."""
    val: int = 200
    """Number of images in val2017, cut from other photographs."""
    seed: int = 1
    """Seed of the split and the windows."""

    def __post_init__(self) -> None:
        for flag, value in (("--train", self.train), ("--val", self.val)):
            if value < 1:
                raise InputError(f"{flag} {value}: must be 1 or more")


@command("samples/wallpapers.py")
def main(argv: Sequence[str] | None = None) -> int:
    """Download, unpack and cut. Equal arguments give equal images."""
    config = parse(WallpapersConfig, argv, prog="samples/wallpapers.py")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise RefusedError(f"--out {config.out}: is not an empty folder; choose a new one")
    with before_work():
        check_folder("--out", config.out)
    with temporary_folder() as folder:
        photographs = _download(folder)
        random.Random(config.seed).shuffle(photographs)
        held_out = max(3, len(photographs) // 6)
        _cut(photographs[held_out:], config.out / "train2017", config.train, random.Random(config.seed + 1))
        _cut(photographs[:held_out], config.out / "val2017", config.val, random.Random(config.seed + 2))
        print(f"{config.out}: {config.train} train and {config.val} val images from {len(photographs)} photographs")
    return 0


def _download(folder: Path) -> list[Path]:
    """Download and unpack the packages. Returns their photographs, sorted by path."""
    try:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "download", "-qq", *_PACKAGES], cwd=folder, check=True)
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg", "-x", package.name, "unpacked"], cwd=folder, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"Debian's wallpapers could not be downloaded ({error}); run as root on Debian or Ubuntu"
        ) from error
    found = [path for path in (folder / "unpacked").rglob("*.jpg") if not path.is_symlink()]
    return sorted((path for path in found if not any(word in str(path) for word in _NOT_PHOTOGRAPHS)), key=str)


def _cut(photographs: list[Path], out: Path, count: int, rng: random.Random) -> None:
    """Write `count` windows, the same number from each photograph."""
    from PIL import Image

    from samples.windows import Cut, write_window

    Image.MAX_IMAGE_PIXELS = None  # wallpapers may be larger than Pillow's limit
    out.mkdir(parents=True)
    per_photograph, written = -(-count // len(photographs)), 0
    for path in photographs:
        with Image.open(path) as source:
            photograph = source.convert("RGB")
        for _ in range(min(per_photograph, count - written)):
            write_window(photograph, out / f"{written:012d}.jpg", rng, Cut(Image.Resampling.LANCZOS))
            written += 1


if __name__ == "__main__":
    sys.exit(main())
