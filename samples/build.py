"""Build a small folder in COCO's layout from photographs in installed packages: `python samples/build.py --out DIR`."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m samples.build`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import InputError, before_work, command
from relic.files import check_folder, write_json

_MARKER = "samples.json"


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Build OUT/train2017 and OUT/val2017 from photographs in scikit-image and matplotlib. Needs no network."""

    out: Path
    """Folder to make."""
    train: int = 120
    """Number of images in train2017."""
    val: int = 24
    """Number of images in val2017, cut from other photographs."""
    seed: int = 0
    """Seed of the windows."""

    def __post_init__(self) -> None:
        for flag, value in (("--train", self.train), ("--val", self.val)):
            if not 1 <= value <= 100_000:
                raise InputError(f"{flag} {value}: choose from 1 to 100000")


@command("samples/build.py")
def main(argv: Sequence[str] | None = None) -> int:
    """Build into a folder beside OUT and rename it, so that OUT is complete or does not exist."""
    config = parse(SamplesConfig, argv, prog="samples/build.py")
    from samples.photographs import TRAIN, VAL, photographs_sha256, write_windows

    made = {"train": config.train, "val": config.val, "seed": config.seed, "pictures_sha256": photographs_sha256()}
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        with before_work():
            _check_complete(config, made)
        print(f"{config.out}: already built, {config.train} train and {config.val} val images")
        return 0
    with before_work():
        check_folder("--out", config.out.parent)
    building = config.out.with_name(f".{config.out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    write_windows(TRAIN, building / "train2017", config.train, config.seed)
    write_windows(VAL, building / "val2017", config.val, config.seed)
    write_json(building / _MARKER, made)
    if config.out.exists():
        config.out.rmdir()
    building.rename(config.out)
    print(f"{config.out}: built {config.train} train and {config.val} val images")
    return 0


def _check_complete(config: SamplesConfig, made: dict[str, object]) -> None:
    """Raise InputError if OUT is not what this command would build."""
    try:
        found = json.loads((config.out / _MARKER).read_text())
    except (OSError, ValueError):
        raise InputError(f"--out {config.out}: holds other files; choose a new folder") from None
    counts = [len(list((config.out / folder).glob("*.jpg"))) for folder in ("train2017", "val2017")]
    if found != made or counts != [config.train, config.val]:
        raise InputError(f"--out {config.out}: was built with other arguments, or is incomplete; remove it first")


if __name__ == "__main__":
    sys.exit(main())
