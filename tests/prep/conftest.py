"""Small COCO-like folders, and helpers for the tests of prep."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def photograph(width: int, height: int, seed: int) -> Pixels:
    """Smooth colours with some texture, suitable for JPEG, and different for each seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: Pixels = np.clip(smooth + rng.integers(-8, 9, (height, width, 1)), 0, 255).astype(np.uint8)
    return pixels


@pytest.fixture(scope="session")
def make_photograph() -> Callable[[int, int, int], Pixels]:
    return photograph


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a folder in COCO's layout with `train` and `val` JPEGs of `width` x `height`."""

    def build(train: int = 9, val: int = 3, width: int = 120, height: int = 90, name: str = "coco") -> Path:
        for split, count in (("train2017", train), ("val2017", val)):
            folder = tmp_path / name / split
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = photograph(width, height, seed=number + 1000 * (split == "val2017"))
                Image.fromarray(pixels).save(folder / f"{number:012d}.jpg", quality=92)
        return tmp_path / name

    return build


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """A function that gives the sha256 of every file in a folder."""

    def read(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

    return read
