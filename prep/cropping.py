"""Choose windows of an image, and cut and resize them to crops."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from relic.pictures.decoding import Size

PaddedPixels = npt.NDArray[np.uint8]
"""RGBX, (height + 1, width, 4): one unused extra row, so that a window's last row can be read with the full stride."""
_SMALLEST_SCALE = 0.5


class Window(NamedTuple):
    """A box in the upright image, in pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return Size(self.right - self.left, self.bottom - self.top)


def largest_window(image: Size, shape: Size) -> Size:
    """The largest window of `shape`'s aspect ratio that fits into `image`, rounded to whole pixels, at least 1x1."""
    if image.width * shape.height > image.height * shape.width:
        width = _nearest(image.height * shape.width, shape.height)
        return Size(min(max(width, 1), image.width), image.height)
    height = _nearest(image.width * shape.height, shape.width)
    return Size(image.width, min(max(height, 1), image.height))


def _nearest(numerator: int, denominator: int) -> int:
    """The quotient, rounded half up, in integer arithmetic."""
    return (2 * numerator + denominator) // (2 * denominator)


def centre_window(image: Size, shape: Size) -> Window:
    """The largest window of `shape`'s aspect ratio in the middle of `image`."""
    width, height = largest_window(image, shape)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Window(left, top, left + width, top + height)


def random_window(image: Size, shape: Size, *, seed: int, key: str, crop_number: int) -> Window:
    """A random window of `shape`'s aspect ratio. Equal arguments give equal windows.

    The side is uniform between 0.5 and 1 times that of the largest window. The lower bound is raised to `shape` where
    that is larger, so a crop is enlarged only if the image is smaller than the crop. The position is uniform.
    """
    scale_word, x_word, y_word = _words(f"{seed}/{key}/{crop_number}")
    largest = largest_window(image, shape)
    smallest_scale = min(1.0, max(_SMALLEST_SCALE, shape.width / largest.width, shape.height / largest.height))
    scale = smallest_scale + (1 - smallest_scale) * scale_word / 2**64
    width = min(max(round(largest.width * scale), 1), largest.width)
    height = min(max(round(largest.height * scale), 1), largest.height)
    left = x_word * (image.width - width + 1) >> 64
    top = y_word * (image.height - height + 1) >> 64
    return Window(left, top, left + width, top + height)


def _words(text: str) -> tuple[int, int, int]:
    """Three uniform 64-bit integers from a sha256, which, unlike a random generator, no library version can change."""
    digest = hashlib.sha256(text.encode()).digest()
    return (
        int.from_bytes(digest[:8], "little"),
        int.from_bytes(digest[8:16], "little"),
        int.from_bytes(digest[16:24], "little"),
    )


def least_decode_size(image: Size, windows: Sequence[Window], shape: Size) -> Size:
    """The smallest size of a reduced decode in which each window still covers `shape`; at most `image`."""
    width = max(math.ceil(image.width * shape.width / window.size.width) for window in windows)
    height = max(math.ceil(image.height * shape.height / window.size.height) for window in windows)
    return Size(min(width, image.width), min(height, image.height))


def cut(image: Image.Image, full: Size, window: Window, shape: Size, pixels: PaddedPixels | None = None) -> Image.Image:
    """Cut `window` out of `image` and resize it to `shape` (bicubic).

    `window` is measured in an image of size `full`; `image` may be a reduced decode of it. `pixels`, if given, is the
    memory of `image`: the window is then a view of it, not a copy.
    """
    if image.size == full:
        region = image.crop(window) if pixels is None else _view_of(pixels, window)
        return region.resize(shape, Image.Resampling.BICUBIC)
    x_scale, y_scale = image.width / full.width, image.height / full.height
    box = (window.left * x_scale, window.top * y_scale, window.right * x_scale, window.bottom * y_scale)
    return image.resize(shape, Image.Resampling.BICUBIC, box=box)


def _view_of(pixels: PaddedPixels, window: Window) -> Image.Image:
    """The window of `pixels` as an image in mode RGBX, without a copy."""
    width, height = window.size
    row_bytes = pixels.strides[0]
    first = window.top * row_bytes + 4 * window.left
    rows = pixels.reshape(-1)[first : first + height * row_bytes]
    return Image.frombuffer("RGBX", (width, height), rows, "raw", "RGBX", row_bytes, 1)
