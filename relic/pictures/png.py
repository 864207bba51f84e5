"""Take a PNG apart (ISO/IEC 15948): the chunks that decide its pixels, its colour profile, its EXIF block.

Other chunks do not reach Pillow. It rejects an image for a damaged or large one; libpng warns and goes on.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from PIL import Image

from relic.pictures.reasons import Unreadable, check_image_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_TRANSPARENT_BYTES = {b"\0": 2, b"\2": 6}
"""Length of tRNS by colour type: a grey level, a colour. A palette has one byte per entry, the others have alpha."""
_BY_PALETTE = b"\3"
_HAS_COLOUR = 2
_HEADER_BYTES, _PALETTE_BYTES = 13, 3 * 256
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ONE_PASS = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and distance of columns and of rows, of each pass."""
_PIECE_BYTES = 1 << 20
_MAX_SIDE_BYTES = 16 << 20
_RAW_EXIF = b"Raw profile type exif\0"


class Png(NamedTuple):
    """`data` is a PNG of the same pixels. `profile` and `exif` are empty if the file has none, or damaged ones."""

    data: bytes
    profile: bytes
    exif: bytes


def read_png(data: bytes) -> Png:
    """Take a PNG apart. Most damage in the chunks that decide pixels is left for the decoder to find.

    A side chunk counts where libpng lets it count: a colour profile before the palette and the pixels, transparency
    after the palette and before the pixels; the first of each. Raises Unreadable for chunks that contradict each other,
    and for a critical chunk of another standard.
    """
    kept, profile, exif = [SIGNATURE], b"", b""
    seen: dict[bytes, int] = {}
    for name, body, whole in _chunks(data):
        if name and not name.isalpha():  # damage that may have hidden any chunk
            raise Unreadable(f"PNG with a chunk of impossible name ({name!r})")
        if not name[:1].islower():
            _check_critical(name, body, seen, data[25:26] == _BY_PALETTE)
            if whole[4:8] == b"IDAT" and not _whole(whole):  # Pillow passes over this checksum
                raise Unreadable("PNG whose pixels are damaged or cut (wrong checksum)")
            if name != b"PLTE" or data[25:26] == _BY_PALETTE:  # for other PNGs it is a proposal
                kept.append(whole)
        elif not _whole(whole):
            continue
        elif name == b"tRNS" and not seen.keys() & {b"tRNS", b"IDAT"}:
            if not _fits(len(body), data[24], data[25:26], seen.get(b"PLTE", 0) // 3):
                continue
            kept.append(whole)
        elif name == b"iCCP" and not seen.keys() & {b"iCCP", b"PLTE", b"IDAT"}:
            profile = _usable(_inflate(body.partition(b"\0")[2][1:]), data[25])
        elif name == b"eXIf":
            exif = exif or body
        elif name in (b"tEXt", b"zTXt") and body.startswith(_RAW_EXIF):
            text = body[len(_RAW_EXIF) :]
            exif = exif or _from_hex(text if name == b"tEXt" else _inflate(text[1:]))
        seen[name] = len(body)
    return Png(b"".join(kept), profile, exif)


def check_rows(image: Image.Image, data: bytes) -> None:
    """Raise Unreadable if the compressed pixels end early. Pillow leaves the missing ones at zero and reports nothing.

    So the stream is only measured if the last row is zero, or if the image is interlaced.
    """
    width, height, bits, colour, interlaced = struct.unpack(">IIBBxxB", data[16:29])
    if not interlaced and image.crop((0, height - 1, width, height)).tobytes().strip(b"\0"):
        return
    needed = found = 0
    for left, top, across, down in _ADAM7 if interlaced else _ONE_PASS:
        columns, rows = max(0, -((left - width) // across)), max(0, -((top - height) // down))
        needed += rows * (1 + (columns * bits * _CHANNELS[colour] + 7) // 8) if columns else 0
    inflate = zlib.decompressobj()
    for name, body, _ in _chunks(data):
        while name == b"IDAT" and body and found < needed:
            found += len(inflate.decompress(body, _PIECE_BYTES))
            body = inflate.unconsumed_tail
    if found + len(inflate.flush()) < needed:
        raise Unreadable("PNG whose compressed pixels end before its last row")


def _check_critical(name: bytes, body: bytes, seen: Mapping[bytes, int], by_palette: bool) -> None:
    """Refuse what libpng refuses too. Pillow takes the last of two headers, and the last of two palettes."""
    if not name:  # cut off: left for the decoder
        return
    if name not in _CRITICAL:
        raise Unreadable(f"PNG with an unknown critical chunk ({name!r})")
    if (name == b"IHDR") == bool(seen) or (name == b"IHDR" and len(body) != _HEADER_BYTES):
        raise Unreadable("PNG that does not begin with a header, or has two of them")
    if name == b"IHDR":
        check_image_size(*struct.unpack(">II", body[:8]))
    if name == b"IHDR" and (body[10:12] != bytes(2) or body[12] > 1):
        raise Unreadable("PNG of an unknown compression, filter or interlace method")
    impossible = len(body) % 3 or not 0 < len(body) <= _PALETTE_BYTES
    if name == b"PLTE" and by_palette and (impossible or seen.keys() & {b"PLTE", b"IDAT"}):
        raise Unreadable("PNG with a palette of impossible length or place, or with two of them")


def _whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _fits(transparent_bytes: int, bits: int, colour: bytes, entries: int) -> bool:
    """Whether a tRNS chunk has a possible length. One of another length counts for nothing."""
    if colour == _BY_PALETTE:
        return 0 < transparent_bytes <= min(entries, 1 << bits)
    return transparent_bytes == _TRANSPARENT_BYTES.get(colour)


def _usable(profile: bytes, colour: int) -> bytes:
    """The profile, or nothing if it is shorter than it says, for another colour space, or of an impossible intent."""
    (length,) = struct.unpack(">I", profile[:4].rjust(4, b"\xff"))
    space = b"RGB " if colour & _HAS_COLOUR else b"GRAY"
    known = profile[16:20] == space and profile[64:66] == bytes(2)
    return profile[:length] if known and len(profile) >= length else b""


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
