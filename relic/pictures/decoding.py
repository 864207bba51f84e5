"""One decoder for every command: a file's bytes to upright 8-bit sRGB pixels.

JPEGs with 1 or 3 components are decoded by libjpeg-turbo, all others by Pillow.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from relic.arrays import Pixels
from relic.pictures.formats import kind_of, open_image
from relic.pictures.jpeg import JpegHeader, read_jpeg_header
from relic.pictures.pillow import SWAPS_SIDES, apply_profile, decode_image, exif_orientation, turn_upright
from relic.pictures.reasons import Unreadable, check_image_size, unreadable
from relic.pictures.turbo import decode_jpeg

MAX_FILE_BYTES = 512 << 20
_FAST_MIN_FACTOR = 2
"""libjpeg-turbo decodes to 5/8, 6/8 and 7/8 of the size more slowly than to the full size."""


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Header(NamedTuple):
    """A file's bytes and its upright size at full resolution. The pixels of a JPEG are not decoded yet."""

    data: bytes
    full: Size
    jpeg: JpegHeader | None = None
    orientation: int = 1
    image: Image.Image | None = None
    """The decoded pixels of a file that Pillow reads; it has no reduced size to choose. None for other JPEGs."""


class Decoded(NamedTuple):
    """Upright pixels in mode RGB, or RGBX whose fourth byte is unused."""

    image: Image.Image
    pixels: Pixels | None = None
    """The memory of `image`, if it has full size and is the unchanged output of the JPEG decoder."""


def read_file(path: Path) -> bytes:
    """All bytes of a regular file, in as few system calls as possible. Raises Unreadable and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a regular file")
        check_file_size(status.st_size)
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def check_file_size(size: int) -> None:
    """Raise Unreadable for a file of too many bytes."""
    if size > MAX_FILE_BYTES:
        raise Unreadable(f"file larger than {MAX_FILE_BYTES >> 20} MiB")


def read_pixels(path: Path) -> Pixels:
    """Read an image file: uint8 (H, W, 3). Raises Unreadable."""
    try:
        data = read_file(path)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if not data:
        raise Unreadable("empty file")
    try:
        return np.array(decode(read_header(data)).image.convert("RGB"))
    except MemoryError as error:
        raise Unreadable("out of memory") from error


def read_header(data: bytes) -> Header:
    """Read the size of the image in `data`. Raises Unreadable and MemoryError."""
    try:
        if data[:3] == b"\xff\xd8\xff":
            jpeg = read_jpeg_header(data)
            width, height, components, _ = jpeg.frame
            check_image_size(width, height)
            if components in (1, 3):
                orientation = exif_orientation(jpeg.exif)
                full = Size(height, width) if orientation in SWAPS_SIDES else Size(width, height)
                return Header(data, full, jpeg, orientation)
            if components == 4:
                decode_jpeg(data, "CMYK")  # a check: Pillow reports no error for damage in the middle
        image = decode_image(data)
        return Header(data, Size(*image.size), image=image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types for damaged bytes; none of them may end the run
        raise unreadable(error) from error


def read_size(data: bytes) -> Size:
    """The upright size of the image in `data`. The pixels are decoded only if it is a TIFF. As `read_header` raises."""
    if kind_of(data) in ("JPEG", "TIFF"):
        return read_header(data).full
    try:
        opened = open_image(data)
    except Exception as error:  # as above
        raise unreadable(error) from error
    width, height = opened.image.size
    return Size(height, width) if exif_orientation(opened.exif) in SWAPS_SIDES else Size(width, height)


def decode(header: Header, least: Size | None = None) -> Decoded:
    """Decode the pixels. With `least`, a JPEG may be decoded to a reduced size of at least that.

    Raises Unreadable and MemoryError.
    """
    if header.jpeg is None:
        assert header.image is not None
        return Decoded(header.image)
    try:
        return _decode_jpeg(header, header.jpeg, least)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise unreadable(error) from error


def _decode_jpeg(header: Header, jpeg: JpegHeader, least: Size | None) -> Decoded:
    reduce: dict[str, int] = {}
    if least is not None:
        width, height = (least.height, least.width) if header.orientation in SWAPS_SIDES else least
        reduce = {"min_width": width, "min_height": height, "min_factor": _FAST_MIN_FACTOR}
    memory = np.empty((jpeg.frame.height + 1, jpeg.frame.width, 4), np.uint8)
    pixels = decode_jpeg(header.data, "RGBX", memory, **reduce)
    as_stored = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    image = apply_profile(as_stored, jpeg.icc_profile, "GRAY" if jpeg.frame.components == 1 else "RGB")
    image = turn_upright(image, header.orientation)
    return Decoded(image, memory if image is as_stored and image.size == header.full else None)
