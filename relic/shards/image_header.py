"""Encoding and size of an image from its first bytes, without decoding it."""

import struct
from typing import NamedTuple

from relic.options import Encoding
from relic.pictures.jpeg import find_frame
from relic.shards.npy import parse_npy_header

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Geometry(NamedTuple):
    """How an image is stored, and its size in pixels."""

    encoding: Encoding
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.encoding} {self.width}x{self.height}"


def read_geometry(payload: memoryview) -> Geometry | None:
    """Recognise npy (uint8 height x width x 3), JPEG or PNG by their content. None for anything else."""
    start = bytes(payload[:24])
    if start.startswith(b"\x93NUMPY"):
        try:
            header = parse_npy_header(payload)
        except ValueError:
            return None
        return Geometry("raw", header.shape[0], header.shape[1]) if header.is_image else None
    if start.startswith(_PNG_MAGIC) and len(start) == 24:
        width, height = struct.unpack_from(">II", start, 16)
        return Geometry("png", height, width)
    if start.startswith(b"\xff\xd8") and (frame := find_frame(payload)):
        return Geometry("jpg", frame.height, frame.width)
    return None
