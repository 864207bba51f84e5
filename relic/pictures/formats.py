"""The kinds of file that Pillow is given, by their first bytes, and what it would misread without an error."""

import io
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImagePalette,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from relic.pictures.jpeg import plain_jpeg, read_jpeg_header
from relic.pictures.png import SIGNATURE, read_png
from relic.pictures.reasons import Unreadable, check_image_size

_KINDS: Mapping[bytes, str] = {
    b"\xff\xd8\xff": "JPEG",
    SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_READERS: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_BMP_UNCOMPRESSED = (0, 3)
_BMP_OLD_HEADER, _BMP_HEADER_WITH_ALPHA = 12, 56
_TIFF_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""None, LZW, Deflate, PackBits, Deflate (old number), LZMA, Zstandard: damage in their data is an error."""
_TIFF_SIGNED = 2
_TIFF_UNTOLD = (0,)
"""Of ExtraSamples. Most readers take one such sample for alpha; in aerial photographs it is infrared."""
_TIFF_YCBCR = 6
_TIFF_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))
_TIFF_INTEGERS = (1, 3, 4, 6, 8, 9, 16, 17)
_TIFF_DECIDING = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339)
_TIFF_SINGLE = (256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323)
"""Tags that decide pixels, and those of them that have one value. Pillow passes over one that it cannot read. Of two
equal ones it takes the last, libtiff the first."""
_TIFF_POINTERS = (0x8769, 0x8825, 0xA005)
"""Tags that lead to further tables (EXIF, GPS, interoperability). They decide no pixel."""


class Opened(NamedTuple):
    """A file of a known kind, not decoded yet. What decides its pixels besides: EXIF block and colour profile."""

    kind: str
    image: ImageFile.ImageFile
    exif: bytes
    profile: bytes
    covered: tuple[int, int, int, int]
    """The part of the canvas that the file has pixels for (left, top, right, bottom). The rest is transparent."""


def kind_of(data: bytes) -> str:
    """The kind of file by its first bytes. Raises Unreadable for any other than those read here."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    for start, kind in _KINDS.items():
        if data.startswith(start):
            return kind
    raise Unreadable("not a JPEG, PNG, WebP, GIF, BMP or TIFF file (by its first bytes)")


def open_image(data: bytes) -> Opened:
    """Open a file by Pillow's reader for its kind.

    Raises Unreadable for what Pillow would misread, and any error of Pillow for damaged data.
    """
    kind = kind_of(data)
    exif = profile = b""
    if kind == "PNG":
        data, profile, exif = read_png(data)
    elif kind == "JPEG":
        _, exif, profile = read_jpeg_header(data)
        data = plain_jpeg(data)
    elif kind == "BMP":
        _check_bmp(data)
    elif kind == "GIF":
        _check_gif(data)
    elif kind == "TIFF":
        _check_tags(data)
    elif not features.check("webp"):
        raise Unreadable("WebP image: this Pillow was built without WebP (libwebp-dev)")
    image = _READERS[kind](io.BytesIO(data))
    check_image_size(*image.size)
    covered = (0, 0, *image.size)
    if kind == "PNG":
        _scale_transparent_level(image, data)
    elif isinstance(image, BmpImagePlugin.BmpImageFile):
        _check_bmp_length(image, data)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, len(data))
    elif kind == "GIF" and image.tile:
        if image.size != struct.unpack_from("<HH", data, 6):
            raise Unreadable("GIF whose first frame is larger than its canvas: some readers cut it, others do not")
        covered = image.tile[0][1] or covered
        if covered[0] >= covered[2] or covered[1] >= covered[3]:
            raise Unreadable("GIF whose first frame has no pixels")
    return Opened(kind, image, exif or image.info.get("exif") or b"", profile or _profile(image), covered)


def _profile(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


def _check_bmp(data: bytes) -> None:
    """Pillow 12.1 loses its place in run-length data, and takes OS/2's Huffman code for pixels."""
    place, header_bytes, bits = (
        int.from_bytes(data[start:end], "little") for start, end in ((10, 14), (14, 18), (28, 30))
    )
    compression = int.from_bytes(data[30:34], "little")
    if header_bytes == _BMP_OLD_HEADER:
        bits, compression = int.from_bytes(data[24:26], "little"), 0
    if compression not in (_BMP_UNCOMPRESSED if header_bytes != 64 else (0,)):
        raise Unreadable(f"compressed BMP (compression {compression}): only uncompressed ones are read")
    if compression == 3 and header_bytes >= _BMP_HEADER_WITH_ALPHA and bits == 16 and any(data[66:70]):
        raise Unreadable("BMP of 16-bit pixels with alpha, which Pillow does not read")
    if 0 < place < 14 + header_bytes + (bits <= 8):
        raise Unreadable("BMP whose pixels begin inside its header or its palette")


def _check_bmp_length(image: BmpImagePlugin.BmpImageFile, data: bytes) -> None:
    """Rows are padded to 4 bytes. Pillow takes a file whose last padding is missing: bytes before it may be missing."""
    bits = int.from_bytes(data[24:26] if data[14] == _BMP_OLD_HEADER else data[28:30], "little")
    if image.tile and image.tile[0].offset + (image.width * bits + 31) // 32 * 4 * image.height > len(data):
        raise Unreadable("BMP that is cut: it is shorter than its rows of pixels")


def _check_gif(data: bytes) -> None:
    """A GIF without any palette has no colours; each reader chooses others."""
    place = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 128 else 0)
    while data[place : place + 1] == b"!":
        place += 2
        while place < len(data) and data[place]:
            place += data[place] + 1
        place += 1
    if data[place : place + 1] == b"," and len(data) > place + 9 and not (data[10] | data[place + 9]) & 128:
        raise Unreadable("GIF without a palette")


def _check_tags(data: bytes) -> None:
    """Pillow copies the value of each tag when it opens a TIFF, and many large values may be the same bytes."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    if big and struct.unpack_from(order + "HH", data, 4) != (8, 0):
        raise Unreadable("BigTIFF with offsets of unknown size")
    (table,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, table)
    start, size, entry = (table + 8, 20, order + "HHQ") if big else (table + 2, 12, order + "HHI")
    offset_bytes = 8 if big else 4
    total, seen = 0, set()
    for place in range(start, start + min(tags, len(data)) * size, size):
        tag, kind, count = struct.unpack_from(entry, data, place)
        value_bytes = count * _TIFF_TYPE_BYTES.get(kind, 0)
        if tag in _TIFF_DECIDING:
            if tag in seen:
                raise Unreadable(f"TIFF in which tag {tag} stands twice")
            seen.add(tag)
            (value,) = struct.unpack_from(entry[0] + entry[-1], data, place + size - offset_bytes)
            outside = value_bytes > offset_bytes and value + value_bytes > len(data)
            impossible = not count or (count > 1 and tag in _TIFF_SINGLE)
            if kind not in _TIFF_INTEGERS or impossible or outside:
                raise Unreadable(f"TIFF of which tag {tag} cannot be read")
        total += value_bytes
        if total > 2 * len(data):
            raise Unreadable("TIFF whose tags need more bytes than the file has")


def _check_tiff(image: TiffImagePlugin.TiffImageFile, length: int) -> None:
    tags = image.tag_v2
    bits, compression = _values(tags.get(258, 1)), tags.get(259, 1)
    if 262 not in tags:
        raise Unreadable("TIFF that does not say whether 0 is black, white or an index (no tag 262)")
    if (planes := tags.get(284, 1)) not in (1, 2):
        raise Unreadable(f"TIFF of an unknown order of samples (PlanarConfiguration {planes})")
    if compression not in _TIFF_LOSSLESS:
        names = "none, LZW, Deflate, PackBits, LZMA and Zstandard"
        raise Unreadable(f"TIFF of compression {compression}: only {names} are read")
    if _TIFF_SIGNED in _values(tags.get(339, 1)):
        raise Unreadable("TIFF of signed samples: they have no fixed black level and white level")
    if image.mode in ("L", "LA", "RGB") and tags.get(338) == _TIFF_UNTOLD:
        raise Unreadable("TIFF of a further sample beside the colours: it does not say whether that is alpha")
    if planes == 2 and max(bits) > 8:
        raise Unreadable(f"TIFF of separate {max(bits)}-bit planes, which Pillow reads as 8-bit ones")
    if 0 in _values(tags.get(273) or tags.get(324) or 1):
        raise Unreadable("TIFF of which parts are not stored (offset 0)")
    if 273 in tags and 324 in tags:
        raise Unreadable("TIFF of strips and of tiles at once")
    areas = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in areas)
    layers = tags.get(277, 1) if planes == 2 and image.tile[0].codec_name != "libtiff" else 1
    if covered != image.width * image.height * layers:
        raise Unreadable("TIFF with more or fewer strips or tiles than its size needs")
    if compression == 1 and any(sum(tile) > length for tile in zip(tags.get(324, ()), tags.get(325, ()), strict=False)):
        raise Unreadable("TIFF that is cut: a tile ends after the file")
    if tags.get(262) == _TIFF_YCBCR:
        raise Unreadable("TIFF of YCbCr pixels, which Pillow reads as RGB")
    if image.mode == "P" and 320 in tags and max(tags[320]) < 256:  # a map of 8-bit values, as libtiff guesses too
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[320]))
    image.info.pop("xmp", None)  # Pillow would turn the image by XMP's orientation
    exif = image.getexif()
    if isinstance(value := exif.get(ExifTags.Base.Orientation), bytes):
        exif[ExifTags.Base.Orientation] = value[0] if value else 1
    for pointer in _TIFF_POINTERS:
        exif.pop(pointer, None)


def _values(tag: object) -> tuple[int, ...]:
    return tag if isinstance(tag, tuple) else (int(str(tag)),)


def _scale_transparent_level(image: ImageFile.ImageFile, data: bytes) -> None:
    """Pillow scales grey samples of 2 and 4 bits to 8, but not the level that tRNS makes transparent."""
    bits, level = data[24], image.info.get("transparency")
    if image.mode == "RGB" and bits == 16 and level is not None:
        raise Unreadable("PNG of 16-bit colours of which one is transparent: Pillow reads only 8 of the 16 bits")
    if image.mode == "L" and isinstance(level, int):
        image.info["transparency"] = (level & (1 << bits) - 1) * 255 // ((1 << bits) - 1)


def deep_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8 bits; mode L, or LA where a level is transparent."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = _values(tags.get(258, 16))[0]
    if image.mode == "F":
        raise Unreadable("floating-point samples have no fixed white level")
    if bits > 16:
        raise Unreadable(f"{bits}-bit samples: only those of up to 16 bits are read")
    top = (1 << bits) - 1
    table = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    if tags.get(262) == 0:
        table = table[::-1]
    levels = np.asarray(image)
    grey = Image.fromarray(table[np.minimum(levels, top)])
    if not isinstance(clear := image.info.get("transparency"), int):
        return grey
    grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey
