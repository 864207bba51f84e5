"""Read a JPEG's header: size, components, EXIF block, ICC profile (ITU-T T.81 annex B, ICC.1 annex B.4).

Uses only the standard library.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class Frame(NamedTuple):
    """Size in pixels as stored (before orientation), and the number of colour components."""

    width: int
    height: int
    components: int


class JpegHeader(NamedTuple):
    """What the segments before the first scan hold. `exif` and `icc_profile` are empty if the file has none."""

    frame: Frame
    exif: bytes
    icc_profile: bytes


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments before the first scan. Raises ValueError if the header is not complete."""
    frame: Frame | None = None
    exif = b""
    profile: dict[int, bytes] = {}
    for marker, body in _segments(data):
        if marker in _FRAME and len(body) >= 6:
            frame = _frame(body)
        elif marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif = body
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profile[body[12]] = body[14:]
    if frame is None:
        raise ValueError("JPEG without a frame header")
    return JpegHeader(frame, exif, b"".join(profile[number] for number in sorted(profile)))


def find_frame(data: bytes) -> Frame | None:
    """The first frame header; None if there is none. The rest of the header may be damaged."""
    try:
        return next((_frame(body) for marker, body in _segments(data) if marker in _FRAME and len(body) >= 6), None)
    except ValueError:
        return None


def _frame(body: bytes) -> Frame:
    height, width, components = struct.unpack(">xHHB", body[:6])
    return Frame(width, height, components)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of each segment before the first scan. Raises ValueError if the data ends before it."""
    place = 2
    while True:
        marker, start, end = _segment(data, place)
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        yield marker, data[start:end]
        place = end


def _segment(data: bytes, place: int) -> tuple[int, int, int]:
    """The marker at or after `place`, and the start and end (exclusive) of its body."""
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
