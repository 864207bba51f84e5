"""An image file to upright 8-bit sRGB pixels, or the reason why not.

Ordinary JPEGs (grey, RGB, YCbCr) are read by libjpeg-turbo through simplejpeg, all else by Pillow. Transparency is laid
on white; 16-bit samples are scaled to 8; of an animation the first frame counts; a stand-alone CMYK JPEG is taken as
stored inverted, with or without Adobe's marker, as browsers do.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from prep.colour import ProfileError, conversion_to_srgb, profile_space
from prep.cropping import Pixels, Size
from prep.jpeg_markers import JpegHeader, read_jpeg_header
from relic.errors import InputError

MAX_PIXELS = 89_478_485
"""Pillow's own threshold for a decompression bomb: 256 MiB of RGB."""
MAX_FILE_BYTES = 512 << 20
_FAST_MIN_FACTOR = 2
"""libjpeg-turbo decodes to 5, 6 and 7 eighths of the size more slowly than to all of it."""
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters", "JFIF revision", "Adobe color transform")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object in memory, in some of Pillow's messages: it differs from run to run."""
_SWAPS_SIDES = (5, 6, 7, 8)
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LeastSize = Callable[[Size], Size]
"""From an image's full size to the smallest size at which it may be decoded."""


class Rejected(Exception):
    """This source gives no crop; the message is the reason, for `SPLIT.rejected.jsonl`."""


class Decoded(NamedTuple):
    """Upright pixels (mode RGB, or RGBX whose last byte means nothing) and the size at full resolution."""

    image: Image.Image
    full: Size
    pixels: Pixels | None = None
    """The image's own memory, where it is of full size and still as the JPEG decoder left it."""


def read_source(path: Path, size: int) -> bytes:
    """The bytes of a listed file of `size` bytes. Raises Rejected; InputError where it changed since it was listed."""
    try:
        data = _read_regular(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise Rejected("dangling link") from None
        raise InputError(f"{os.fspath(path)!r}: vanished while it was packed; run the command again") from None
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise InputError(f"{os.fspath(path)!r}: changed while it was packed; run the command again")
    if not data:
        raise Rejected("empty file")
    return data


def _read_regular(path: Path) -> bytes:
    """All bytes of a regular file, in as few calls as there can be. Raises Rejected, and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would have us wait for its writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise Rejected(f"file larger than {MAX_FILE_BYTES >> 20} MiB")
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def decode(data: bytes, least_size: LeastSize | None = None) -> Decoded:
    """Decode a file's bytes; `least_size` allows a JPEG to be decoded at a fraction of its size. Raises Rejected."""
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _decode_jpeg(data, least_size)
        return _decode_other(data)
    except (Rejected, MemoryError):
        raise
    except ProfileError as error:
        raise Rejected(str(error)) from error
    except UnidentifiedImageError as error:
        raise Rejected(_what_is_missing(data) or "not an image that Pillow can identify") from error
    except Exception as error:  # decoders fail on hostile bytes in every way there is; none may end the run
        raise Rejected(_reason(error)) from error


def _what_is_missing(data: bytes) -> str:
    """Names the library this Pillow was built without, where that is why a file is not identified."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not features.check("webp"):
        return "WebP image: this Pillow was built without WebP (libwebp-dev)"
    return ""


def _reason(error: Exception) -> str:
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    return text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}"


def _check_size(width: int, height: int) -> Size:
    if width < 1 or height < 1:
        raise Rejected("no pixels")
    if width * height > MAX_PIXELS:
        raise Rejected(f"decompression bomb: {width}x{height} pixels, more than {MAX_PIXELS:,}")
    return Size(width, height)


def _decode_jpeg(data: bytes, least_size: LeastSize | None) -> Decoded:
    header = read_jpeg_header(data)
    stored = _check_size(header.width, header.height)
    if header.components not in (1, 3):
        _check_entropy_data(data)
        return _decode_other(data)
    swaps = header.orientation in _SWAPS_SIDES
    full = Size(stored.height, stored.width) if swaps else stored
    reduce: dict[str, int] = {}
    if least_size is not None:
        least = least_size(full)
        width, height = (least.height, least.width) if swaps else least
        reduce = {"min_width": width, "min_height": height, "min_factor": _FAST_MIN_FACTOR}
    memory = np.empty((stored.height + 1, stored.width, 4), np.uint8)
    pixels = _decode_strictly(data, memory, reduce)
    as_stored = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    image = _to_srgb_jpeg(as_stored, header)
    if header.orientation != 1:
        image = image.transpose(_TURN[header.orientation])
    return Decoded(image, full, memory if image is as_stored and image.size == full else None)


def _decode_strictly(data: bytes, memory: Pixels, reduce: dict[str, int]) -> Pixels:
    """Decode to RGBX, into `memory`; corrupt or missing data is an error, oddities that touch no pixel are not."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGBX", strict=True, buffer=memory, **reduce)
    except ValueError as error:
        if not any(oddity in str(error) for oddity in _HARMLESS):
            raise
    return simplejpeg.decode_jpeg(data, colorspace="RGBX", strict=False, buffer=memory, **reduce)


def _check_entropy_data(data: bytes) -> None:
    """Pillow reads a CMYK JPEG with damage in its middle without a word; libjpeg-turbo says so."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)
    except ValueError as error:
        if not any(oddity in str(error) for oddity in _HARMLESS):
            raise


def _to_srgb_jpeg(image: Image.Image, header: JpegHeader) -> Image.Image:
    if not header.icc_profile:
        return image
    space = "GRAY" if header.components == 1 else "RGB"
    return _apply_profile(image, header.icc_profile, space)


def _apply_profile(image: Image.Image, profile: bytes, space: str) -> Image.Image:
    """`image` (RGB or RGBX; grey ones hold three equal channels) in sRGB. A profile for other pixels is ignored."""
    wanted = profile_space(profile)
    if wanted not in (space, "RGB"):
        return image
    convert = conversion_to_srgb(profile)
    if convert is None:
        return image
    return convert(image.convert("L" if wanted == "GRAY" else "RGB")).convert("RGB")


def _decode_other(data: bytes) -> Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as source:
            _check_size(*source.size)
            profile = source.info.get("icc_profile") or b""
            source.load()
            upright = _turn_upright(source)
            image = _flatten(upright, profile)
    return Decoded(image, Size(*image.size))


def _turn_upright(source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block says nothing of the pixels
        orientation = 1
    return source.transpose(_TURN[orientation]) if orientation in _TURN else source


def _flatten(image: Image.Image, profile: bytes) -> Image.Image:
    """Any mode of Pillow's to RGB in sRGB, without alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        return _apply_profile(_scale_deep(image).convert("RGB"), profile, "GRAY")
    if image.mode == "CMYK":
        if profile_space(profile) == "CMYK" and (convert := conversion_to_srgb(profile)):
            return convert(image)
        return image.convert("RGB")
    space = "GRAY" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data and image.mode != "PA":
        return _apply_profile(image.convert("RGB"), profile, space)
    with_alpha = image.convert("RGBA")
    colours = _apply_profile(with_alpha.convert("RGB"), profile, space)
    white = Image.new("RGB", image.size, "white")
    return Image.composite(colours, white, with_alpha.getchannel("A"))


def _scale_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits to 8, by scale."""
    bits = image.tag_v2.get(258, (16,))[0] if hasattr(image, "tag_v2") else 16  # TIFF's BitsPerSample
    if image.mode == "F" or bits > 16:
        raise Rejected(f"{bits}-bit samples have no fixed white level")
    levels = np.asarray(image).astype(np.uint32)
    top = (1 << bits) - 1
    return Image.fromarray(((np.minimum(levels, top) * 255 + top // 2) // top).astype(np.uint8))
