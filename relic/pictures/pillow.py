"""Decode an image file to upright 8-bit sRGB pixels with Pillow.

EXIF orientation and colour profile are applied. Transparent pixels are blended with white. 16-bit values are scaled to
8 bits. The first frame of an animation is used. A CMYK JPEG is read as inverted, with or without Adobe's marker, as
browsers do.
"""

import struct
import warnings

from PIL import Image

from relic.pictures.colour import conversion_to_srgb, profile_space
from relic.pictures.formats import deep_to_8_bits, kind_of, open_image
from relic.pictures.png import check_rows
from relic.pictures.reasons import unreadable

_ORIENTATION_TAG = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""The integer types of a tag, as struct names them."""
_PIXELS_AT_ONCE = 4 << 20
"""Transparency is blended in parts: each step of it needs another 4 bytes per pixel."""
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


def decode_image(data: bytes) -> Image.Image:
    """Decode a file's bytes to an image in mode RGB. Raises Unreadable and MemoryError."""
    kind = kind_of(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = open_image(data)
            with opened.image as source:
                source.load()
                if kind == "PNG":
                    check_rows(source, data)
                image = _flatten(source, opened.profile)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types for damaged bytes
        raise unreadable(error, f"{kind} that is damaged, or of a kind that Pillow cannot decode") from error
    if opened.covered != (0, 0, *image.size) and kind == "GIF":
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image.crop(opened.covered), opened.covered)
        image = canvas
    # Pillow turns a TIFF itself.
    return image if kind == "TIFF" else turn_upright(image, exif_orientation(opened.exif))


def exif_orientation(exif: bytes) -> int:
    """Orientation (1 to 8) from an EXIF block (TIFF 6.0 section 2); 1 if it has none or is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    orientation = 1
    try:
        (table,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, table)
        for entry in range(table + 2, table + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == _ORIENTATION_TAG and kind in _INTEGERS and count == 1:
                (orientation,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
    except struct.error:  # a damaged block does not affect the pixels
        pass
    return orientation if orientation in range(1, 9) else 1


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


def _flatten(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert any mode of Pillow to RGB in sRGB, without alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        image = deep_to_8_bits(image)
    if image.mode == "CMYK":
        if profile_space(profile) == "CMYK" and (convert := conversion_to_srgb(profile)):
            return convert(image)
        return image.convert("RGB")
    space = "GRAY" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data and image.mode != "PA":
        return apply_profile(image.convert("RGB"), profile, space)
    flat = Image.new("RGB", image.size, "white")
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        part = (0, top, image.width, min(top + rows, image.height))
        with_alpha = image.crop(part).convert("RGBA")
        colours = apply_profile(with_alpha.convert("RGB"), profile, space)
        flat.paste(colours, part, with_alpha.getchannel("A"))
    return flat
