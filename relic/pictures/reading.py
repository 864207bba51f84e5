"""Decode an image file to upright 8-bit sRGB pixels with Pillow.

EXIF orientation and colour profile are applied. Transparent pixels are blended with white. 16-bit values are scaled to
8 bits. The first frame of an animation is used. A CMYK JPEG is read as inverted, with or without Adobe's marker, as
browsers do.
"""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features

from relic.pictures.colour import ProfileError, conversion_to_srgb, profile_space

_ORIENTATION_TAG = 0x0112
SWAPS_SIDES = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Memory addresses in some of Pillow's messages. They differ from run to run, so they are removed."""


class Unreadable(Exception):
    """The file cannot be decoded. The message is the reason, in one line."""


def read_pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file: uint8 (H, W, 3). Raises Unreadable."""
    try:
        return np.array(decode_image(path.read_bytes()))
    except Unreadable:
        raise
    except Exception as error:  # decoders raise many types for damaged bytes
        raise unreadable(error) from error


def decode_image(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode a file's bytes to an image in mode RGB. Raises Unreadable, and any error of Pillow for damaged data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise Unreadable(_what_is_missing(data) or "not an image that Pillow can identify") from error
        with source:
            check_size(*source.size, max_pixels)
            profile = source.info.get("icc_profile") or b""
            source.load()
            return _flatten(turn_upright(source, _orientation(source)), profile)


def unreadable(error: Exception) -> Unreadable:
    """Turn a decoder's error into one line that is the same in every run."""
    if isinstance(error, ProfileError):
        return Unreadable(str(error))
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    return Unreadable(text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}")


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise Unreadable for an image without pixels or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise Unreadable("no pixels")
    if max_pixels is not None and width * height > max_pixels:
        raise Unreadable(f"decompression bomb: {width}x{height} pixels, more than {max_pixels:,}")


def exif_orientation(exif: bytes) -> int:
    """Orientation (1 to 8) from an EXIF block; 1 if it has none or is damaged."""
    table = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table.load(exif)
            value = table.get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block, for which Pillow raises many types, does not affect the pixels
        return 1
    return value if value in range(1, 9) else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as EXIF asks; the same object if `orientation` is 1 or unknown."""
    return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def apply_profile(image: Image.Image, profile: bytes, space: str) -> Image.Image:
    """Convert `image` (RGB or RGBX; a grey one has three equal channels) to sRGB. Ignores profiles of other spaces."""
    wanted = profile_space(profile)
    if wanted not in (space, "RGB"):
        return image
    convert = conversion_to_srgb(profile)
    if convert is None:
        return image
    return convert(image.convert("L" if wanted == "GRAY" else "RGB")).convert("RGB")


def _what_is_missing(data: bytes) -> str:
    """If Pillow cannot identify the file because it was built without a library, the message that names the library."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not features.check("webp"):
        return "WebP image: this Pillow was built without WebP (libwebp-dev)"
    return ""


def _orientation(source: Image.Image) -> int:
    try:
        return int(source.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block does not affect the pixels
        return 1


def _flatten(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert any mode of Pillow to RGB in sRGB, without alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        return apply_profile(_scale_deep(image).convert("RGB"), profile, "GRAY")
    if image.mode == "CMYK":
        if profile_space(profile) == "CMYK" and (convert := conversion_to_srgb(profile)):
            return convert(image)
        return image.convert("RGB")
    space = "GRAY" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data and image.mode != "PA":
        return apply_profile(image.convert("RGB"), profile, space)
    with_alpha = image.convert("RGBA")
    colours = apply_profile(with_alpha.convert("RGB"), profile, space)
    white = Image.new("RGB", image.size, "white")
    return Image.composite(colours, white, with_alpha.getchannel("A"))


def _scale_deep(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8 bits."""
    bits = image.tag_v2.get(258, (16,))[0] if hasattr(image, "tag_v2") else 16  # TIFF's BitsPerSample
    if image.mode == "F" or bits > 16:
        raise Unreadable(f"{bits}-bit samples have no fixed white level")
    levels = np.asarray(image).astype(np.uint32)
    top = (1 << bits) - 1
    return Image.fromarray(((np.minimum(levels, top) * 255 + top // 2) // top).astype(np.uint8))
