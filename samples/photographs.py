"""Cut windows of COCO's sizes from the photographs in the wheels of scikit-image and matplotlib."""

import hashlib
import random
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from relic.errors import InputError
from samples.windows import Cut, write_window

# Colour photographs are listed twice, so that they are used twice as often as grey ones.
TRAIN = (
    *("skimage/data/astronaut.png", "skimage/data/coffee.png", "skimage/data/motorcycle_left.png") * 2,
    *("skimage/data/rocket.jpg", "skimage/data/ihc.png", "skimage/data/hubble_deep_field.jpg") * 2,
    *("skimage/data/retina.jpg", "skimage/data/motorcycle_right.png"),
    *("skimage/data/brick.png", "skimage/data/grass.png", "skimage/data/gravel.png", "skimage/data/coins.png"),
)
VAL = (
    *("skimage/data/chelsea.png", "matplotlib/mpl-data/sample_data/grace_hopper.jpg") * 2,
    "skimage/data/camera.png",
)
_CUT = Cut(Image.Resampling.BICUBIC, most_enlarged=1.8, whole_pixels=False, mirrored=True)


def find_photograph(name: str) -> Path:
    """The file `PACKAGE/path` in an installed package. Raises InputError if it is missing."""
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"{name}: this photograph is part of {package}; pip install -r requirements.txt")
    return path


def photographs_sha256() -> str:
    """sha256 of the bytes of all photographs."""
    digest = hashlib.sha256()
    for name in sorted({*TRAIN, *VAL}):
        digest.update(find_photograph(name).read_bytes())
    return digest.hexdigest()


def write_windows(names: tuple[str, ...], folder: Path, count: int, seed: int) -> None:
    """Write `count` JPEGs into `folder`, cut from the named photographs in turn. Equal arguments give equal pixels."""
    folder.mkdir(parents=True)
    photographs = {name: Image.open(find_photograph(name)).convert("RGB") for name in dict.fromkeys(names)}
    for number in range(count):
        rng = random.Random(f"{seed}/{folder.name}/{number}")
        write_window(photographs[names[number % len(names)]], folder / f"{number:012d}.jpg", rng, _CUT)
