"""Windows of COCO's sizes, cut from the photographs that scikit-image and matplotlib ship in their wheels."""

import hashlib
import random
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from relic.errors import InputError
from samples.windows import Cut, write_window

# Colour pictures are named twice: they are drawn twice as often as grey ones.
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


def find_picture(name: str) -> Path:
    """The file `PACKAGE/path` inside an installed package. Raises InputError where it is missing."""
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"{name}: this picture comes with {package}; pip install -r requirements.txt")
    return path


def pictures_sha256() -> str:
    """sha256 over the bytes of all pictures in use."""
    digest = hashlib.sha256()
    for name in sorted({*TRAIN, *VAL}):
        digest.update(find_picture(name).read_bytes())
    return digest.hexdigest()


def write_windows(names: tuple[str, ...], folder: Path, count: int, seed: int) -> None:
    """Write `count` JPEGs into `folder`, cut from the pictures named, in turn; same arguments, same pixels."""
    folder.mkdir(parents=True)
    pictures = {name: Image.open(find_picture(name)).convert("RGB") for name in dict.fromkeys(names)}
    for number in range(count):
        rng = random.Random(f"{seed}/{folder.name}/{number}")
        write_window(pictures[names[number % len(names)]], folder / f"{number:012d}.jpg", rng, _CUT)
