"""The pixels of the images of a folder. Imports no torch."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from relic.errors import InputError
from relic.pictures.decoding import Size, read_file, read_pixels, read_size
from relic.pictures.reasons import Unreadable


def read_image_size(path: Path) -> Size | None:
    """An image's size without its pixels. None for a file that cannot be read: `read_image` will say why."""
    try:
        return read_size(read_file(path))
    except (Unreadable, MemoryError, OSError):
        return None


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image's pixels, (H, W, 3), upright and in sRGB. Raises InputError naming the file when it cannot be read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file but a pipe or a device; remove it from the folder")
    try:
        return read_pixels(path)
    except Unreadable as error:
        raise InputError(f"{path}: not a readable image ({error}); repair it or remove it from the folder") from error
