"""Image files to RGB pixels and back, with Pillow alone. Pixels are uint8 (H, W, 3)."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from relic.errors import InputError
from relic.files import atomic_write

Pixels = npt.NDArray[np.uint8]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What a decoded picture can be written as, by the suffix of its name."""
_JPEG_QUALITY = 95


def read_picture(path: Path) -> Pixels:
    """The picture upright (EXIF orientation applied), any mode as RGB, transparency on white; a file's first frame.

    Raises InputError naming the file when Pillow cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's decoders fail on hostile bytes in every way there is
        raise InputError(f"{path}: not a picture that can be read ({error})") from error


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write atomically, in the format that the suffix names."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format=FORMATS[path.suffix.lower()], quality=_JPEG_QUALITY)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would cut off at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, with_alpha).convert("RGB")
