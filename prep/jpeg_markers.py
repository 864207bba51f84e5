"""What a JPEG's header says besides the pixels: components, EXIF, ICC profile (ITU-T T.81 annex B, ICC.1 annex B.4)."""

import struct
import warnings
from typing import NamedTuple

from PIL import Image

_ORIENTATION_TAG = 0x0112
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAME = frozenset({*range(0xC0, 0xD0)}) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class JpegHeader(NamedTuple):
    """Size as stored (before orientation), components, EXIF orientation 1-8, ICC profile or empty bytes."""

    width: int
    height: int
    components: int
    orientation: int
    icc_profile: bytes


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan. Raises ValueError when there is no complete header."""
    frame: tuple[int, int, int] | None = None
    orientation = 1
    profile: dict[int, bytes] = {}
    place = 2
    while True:
        marker, start, end = _segment(data, place)
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        body = data[start:end]
        if marker in _FRAME and len(body) >= 6:
            height, width, components = struct.unpack(">xHHB", body[:6])
            frame = width, height, components
        elif marker == 0xE1 and body[:6] == b"Exif\0\0":
            orientation = exif_orientation(body)
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profile[body[12]] = body[14:]
        place = end
    if frame is None:
        raise ValueError("JPEG without a frame header")
    return JpegHeader(*frame, orientation, b"".join(profile[number] for number in sorted(profile)))


def _segment(data: bytes, place: int) -> tuple[int, int, int]:
    """Marker at or after `place`, first and last + 1 byte of its body."""
    place = data.find(b"\xff", place)
    while place >= 0 and data[place + 1 : place + 2] in (b"\xff", b"\0"):
        place += 1 if data[place + 1] == 0xFF else 2
        place = data.find(b"\xff", place)
    if place < 0 or place + 2 > len(data):
        raise ValueError("JPEG ends inside its header")
    marker = data[place + 1]
    if marker in _STANDALONE or marker == _END_OF_IMAGE:
        return marker, place + 2, place + 2
    if place + 4 > len(data):
        raise ValueError("JPEG ends inside its header")
    (length,) = struct.unpack(">H", data[place + 2 : place + 4])
    if length < 2:
        raise ValueError("JPEG segment of impossible length")
    return marker, place + 4, place + 2 + length


def exif_orientation(exif: bytes) -> int:
    """Orientation 1-8 of an EXIF block; 1 where it has none or cannot be understood."""
    table = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table.load(exif)
            value = table.get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block, in any way that Pillow's parser stumbles on, says nothing of the pixels
        return 1
    return value if value in range(1, 9) else 1
