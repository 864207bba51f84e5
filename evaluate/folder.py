"""Images in a plain folder: which ones, and their pixels. Imports no torch."""

import os
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from relic.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def list_images(folder: Path) -> list[str]:
    """Paths relative to `folder` (`/` between parts) of all images under it, sorted; symlinked folders are not entered.

    Raises InputError for a folder that is missing, unreadable or without an image.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder")
    names = [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, onerror=_refuse)
        for name in files
        if name.lower().endswith(ENDINGS)
    ]
    if not names:
        raise InputError(f"--images {folder}: no image in it ({', '.join(ENDINGS)})")
    return sorted(names)


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"--images {error.filename}: cannot list this folder ({error.strerror})") from error


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image's pixels, (H, W, 3): upright by its EXIF orientation, transparency laid on white, the first frame.

    Values stay as stored, without colour conversion. Raises InputError naming the file when it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as stored:
                return np.array(_to_rgb(ImageOps.exif_transpose(stored)))
    except Exception as error:  # decoders fail on bad bytes in every way there is
        raise InputError(f"{path}: not a readable image ({error}); mend it or take it out of the folder") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        # Pillow would cut such values to 255 instead of scaling them.
        raise ValueError(f"its samples have more than 8 bits, mode {image.mode}")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
