"""Image files to RGB pixels and back, with Pillow alone. Pixels are uint8 (H, W, 3)."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from relic.errors import InputError
from relic.files import atomic_write
from relic.pictures.reading import Unreadable, read_pixels

Pixels = npt.NDArray[np.uint8]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What a decoded picture can be written as, by the suffix of its name."""
_JPEG_QUALITY = 95


def read_picture(path: Path) -> Pixels:
    """The picture upright and in sRGB. Raises InputError naming the file when it cannot be read."""
    try:
        return read_pixels(path)
    except Unreadable as error:
        raise InputError(f"{path}: not a picture that can be read ({error})") from error


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write atomically, in the format that the suffix names."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format=FORMATS[path.suffix.lower()], quality=_JPEG_QUALITY)
