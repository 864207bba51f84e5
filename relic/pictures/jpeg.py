"""Read a JPEG's header: size, components, EXIF block, ICC profile (ITU-T T.81 annex B, ICC.1 annex B.4).

Uses only the standard library.
"""

import functools
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_DECIDES_NO_PIXEL = _STANDALONE | {*range(0xE0, 0xF0), 0xFE}
"""Of a header. Applications' segments and comments; JFIF's and Adobe's say how colours are stored."""
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_ENDS_OF_HEADER = (_START_OF_SCAN, _END_OF_IMAGE)
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_BASELINE = b"\xff\xc0"
_BASELINE_BYTES = 19
"""Of a frame header of three components, with its marker."""
_HEAD_BYTES = 1024
_MARKER = re.compile(rb"\xff[^\0\xff]")
"""Bytes of 255 before a marker are filling, and other bytes between segments are passed over."""
_AFTER_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
"""The marker that ends the data of a scan. Restart markers are part of that data."""
MOST_SCANS = 500
"""libjpeg-turbo goes over the whole image for each scan, and a scan can be 95 bytes. Encoders write about 10."""


class Frame(NamedTuple):
    """Size in pixels as stored (before orientation), number of colour components, and the marker that says how."""

    width: int
    height: int
    components: int
    marker: int

    @property
    def lossless(self) -> bool:
        """Whether the pixels are predicted, not transformed: such a JPEG cannot be decoded to a reduced size."""
        return self.marker in _LOSSLESS

    @property
    def progressive(self) -> bool:
        return self.marker in _PROGRESSIVE


class JpegHeader(NamedTuple):
    """What the segments before the first scan hold. `exif` and `icc_profile` are empty if the file has none."""

    frame: Frame
    exif: bytes
    icc_profile: bytes


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments before the first scan. Raises ValueError if the header is not complete.

    Of several EXIF blocks the first counts. A profile of which a part is missing counts as none.
    """
    frame: Frame | None = None
    exif = b""
    profile: dict[int, bytes] = {}
    num_parts = 0
    for marker, body in _segments(data):
        if marker in _FRAME and len(body) >= 6:
            frame = _frame(marker, body)
        elif marker == 0xE1 and body[:6] == b"Exif\0\0" and not exif:
            exif = body
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profile.setdefault(body[12], body[14:])
            num_parts = body[13]
    if frame is None:
        raise ValueError("JPEG without a frame header")
    whole = sorted(profile) == list(range(1, num_parts + 1))
    return JpegHeader(frame, exif, b"".join(profile[number] for number in sorted(profile)) if whole else b"")


def find_frame(data: bytes | memoryview) -> Frame | None:
    """The first frame header; None if there is none. The rest of the header may be damaged.

    The JPEGs of an encoder begin with the same bytes, up to their frame headers. So what was found in these is kept.
    """
    head = bytes(data[:_HEAD_BYTES])
    return _find_kept_frame(head[: head.find(_BASELINE) + _BASELINE_BYTES]) or _find_frame(bytes(data))


def _find_frame(data: bytes) -> Frame | None:
    try:
        return next((_frame(m, body) for m, body in _segments(data) if m in _FRAME and len(body) >= 6), None)
    except ValueError:
        return None


_find_kept_frame = functools.lru_cache(maxsize=64)(_find_frame)


def plain_jpeg(data: bytes) -> bytes:
    """The same JPEG with a header of only what decides its pixels: tables, frame, and how colours are stored.

    libjpeg warns of, and simplejpeg refuses, much in a header that decides no pixel: bytes between segments, unknown
    versions, broken profiles. Raises ValueError if the header is not complete.
    """
    tables, jfif, adobe, components = b"", b"", b"", 0
    for marker, body in _segments(data):
        if marker not in _DECIDES_NO_PIXEL:
            tables += b"\xff%c%b%b" % (marker, struct.pack(">H", len(body) + 2), body)
            components = body[5] if marker in _FRAME and len(body) > 5 else components
        elif marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
            jfif = _JFIF
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[:12]
    if adobe:  # libjpeg takes an unknown transform for YCbCr or YCCK
        known = {3: (0, 1), 4: (0, 2)}.get(components, (adobe[11],))
        transform = adobe[11] if adobe[11] in known else known[-1]
        adobe = b"\xff\xee\0\x0e" + adobe[:11] + bytes([transform])
    return b"\xff\xd8" + jfif + adobe + tables + data[_first_scan(data) :]


def check_scans(data: bytes) -> None:
    """Raise ValueError for a JPEG of more than `MOST_SCANS` scans. A cut one is left for the decoder to find."""
    place, scans = _first_scan(data), 0
    while found := _AFTER_SCAN.search(data, place):
        try:
            marker, _, place = _segment(data, found.start())
        except ValueError:
            return
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"JPEG of more than {MOST_SCANS} scans")


def _frame(marker: int, body: bytes) -> Frame:
    height, width, components = struct.unpack(">xHHB", body[:6])
    return Frame(width, height, components, marker)


def _first_scan(data: bytes) -> int:
    """The place of the marker that ends the header."""
    *_, (marker, start, _) = _markers(data)
    return start - (4 if marker == _START_OF_SCAN else 2)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of each segment before the first scan. Raises ValueError if the data ends before it."""
    for marker, start, end in _markers(data):
        if marker not in _ENDS_OF_HEADER:
            yield marker, data[start:end]


def _markers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end (exclusive) of each segment up to the one that ends the header."""
    marker, end = 0, 2
    while marker not in _ENDS_OF_HEADER:
        marker, start, end = _segment(data, end)
        if marker == _START_OF_IMAGE:  # a thumbnail's: a length before it is wrong
            raise ValueError("JPEG with a second start of image in its header")
        yield marker, start, end


def _segment(data: bytes, place: int) -> tuple[int, int, int]:
    """The marker at or after `place`, and the start and end (exclusive) of its body."""
    found = _MARKER.search(data, place)
    if found is None:
        raise ValueError("JPEG ends inside its header")
    place, marker = found.start(), data[found.end() - 1]
    if marker in _STANDALONE or marker == _END_OF_IMAGE:
        return marker, place + 2, place + 2
    if place + 4 > len(data):
        raise ValueError("JPEG ends inside its header")
    (length,) = struct.unpack(">H", data[place + 2 : place + 4])
    if length < 2:
        if marker in _DECIDES_NO_PIXEL:  # libjpeg takes it for an empty one
            return marker, place + 4, place + 4
        raise ValueError("JPEG segment of impossible length")
    return marker, place + 4, place + 2 + length
