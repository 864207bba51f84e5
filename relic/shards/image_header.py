"""Encoding and size of an image from its first bytes, without decoding it."""

import struct
from typing import NamedTuple

from relic.options import Encoding
from relic.shards.npy import parse_npy_header

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Geometry(NamedTuple):
    """How an image is stored, and its size in pixels."""

    encoding: Encoding
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.encoding} {self.width}x{self.height}"


def read_geometry(payload: memoryview) -> Geometry | None:
    """Recognise an image by its content: npy (uint8 height x width x 3), JPEG or PNG; None for anything else."""
    start = bytes(payload[:24])
    if start.startswith(b"\x93NUMPY"):
        try:
            header = parse_npy_header(payload)
        except ValueError:
            return None
        return Geometry("raw", header.shape[0], header.shape[1]) if header.is_picture else None
    if start.startswith(_PNG_MAGIC) and len(start) == 24:
        width, height = struct.unpack_from(">II", start, 16)
        return Geometry("png", height, width)
    return _jpeg(payload) if start.startswith(b"\xff\xd8") else None


def _jpeg(payload: memoryview) -> Geometry | None:
    """Walk the markers to the frame header (ITU-T T.81, B.1 and B.2.2)."""
    at = 2
    while at + 9 <= len(payload):
        marker = payload[at + 1]
        if payload[at] != 0xFF or marker == 0xFF:  # stray bytes and fill bytes, which decoders step over too
            at += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", payload, at + 5)
            return Geometry("jpg", height, width)
        elif marker in _JPEG_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", payload, at + 2)[0]
    return None
