"""Take a PNG apart (ISO/IEC 15948): the chunks that decide its pixels, its colour profile, its EXIF block.

Other chunks do not reach Pillow. It rejects an image for a damaged or large one; libpng warns and goes on.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from relic.pictures.reasons import Unreadable

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_TRANSPARENT_BYTES = {0: 2, 2: 6}
"""Length of tRNS by colour type: a grey level, a colour. The others have one byte per palette entry."""
_MAX_SIDE_BYTES = 16 << 20
_RAW_EXIF = b"Raw profile type exif\0"


class Png(NamedTuple):
    """`data` is a PNG of the same pixels. `profile` and `exif` are empty if the file has none, or damaged ones."""

    data: bytes
    profile: bytes
    exif: bytes


def read_png(data: bytes) -> Png:
    """Take a PNG apart. Damage in the chunks that decide pixels is left for the decoder to find.

    Raises Unreadable for a critical chunk of another standard.
    """
    kept, profile, exif = [SIGNATURE], b"", b""
    for name, body, whole in _chunks(data):
        if name[:1].isupper() and name not in _CRITICAL:
            raise Unreadable(f"PNG with an unknown critical chunk ({name!r})")
        if not name[:1].islower():
            kept.append(whole)
        elif zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big"):
            continue
        elif name == b"tRNS" and len(body) == _TRANSPARENT_BYTES.get(data[25], len(body)):
            kept.append(whole)
        elif name == b"iCCP":
            profile = profile or _inflate(body.partition(b"\0")[2][1:])
        elif name == b"eXIf":
            exif = exif or body
        elif name in (b"tEXt", b"zTXt") and body.startswith(_RAW_EXIF):
            text = body[len(_RAW_EXIF) :]
            exif = exif or _from_hex(text if name == b"tEXt" else _inflate(text[1:]))
    return Png(b"".join(kept), profile, exif)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, body, and all bytes of each chunk up to the end of the image. What is cut is yielded as it is."""
    place, name = len(SIGNATURE), b""
    while place < len(data) and name != b"IEND":
        (length,) = struct.unpack(">I", data[place : place + 4].rjust(4, b"\0"))
        whole = data[place : place + length + 12]
        place += len(whole)
        name = whole[4:8]
        yield (name, whole[8:-4], whole) if len(whole) == length + 12 else (b"", b"", whole)


def _inflate(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, _MAX_SIDE_BYTES)
    except zlib.error:
        return b""


def _from_hex(text: bytes) -> bytes:
    """The block in ImageMagick's text form: a line of the name, one of the length, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""
