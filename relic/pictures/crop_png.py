"""PNGs of crops: the filter `sub` in every row, compressed by ISA-L. Any PNG reader reads them.

`sub` stores each value less that of the pixel to its left (ISO/IEC 15948, clause 9). Of the filters that numpy can undo
for a whole image at once it gives the smallest files. ISA-L and numpy let other threads run meanwhile.
"""

import functools
import struct

import numpy as np
from isal import isal_zlib

from relic.arrays import Pixels
from relic.pictures.png import SIGNATURE

_SUB = 1
_LEVEL = 1
"""Levels 0 to 2 of ISA-L give the same bytes on every x86-64 processor. Level 3 does not."""
_IDAT = b"IDAT"
_BEFORE_PIXELS, _AFTER_PIXELS = 8, 16
"""Bytes between the header and the compressed pixels: length, name. Bytes after these: checksum, the chunk IEND."""


def encode_crop_png(pixels: Pixels) -> bytes:
    """The PNG of uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1:4] = rows[:, :3]
    np.subtract(rows[:, 3:], rows[:, :-3], out=filtered[:, 4:])
    return _header(height, width) + _chunk(_IDAT, isal_zlib.compress(filtered, _LEVEL)) + _END


def decode_crop_png(data: memoryview, memory: Pixels) -> bool:
    """Decode a PNG of `encode_crop_png` into `memory`, uint8 (H, W, 3), contiguous. Every checksum is checked.

    Returns False for any other PNG, also for one of another size and for a damaged one. `memory` is then unchanged.
    """
    height, width, _ = memory.shape
    header = _header(height, width)
    start = len(header) + _BEFORE_PIXELS
    expected_start = header + struct.pack(">I", max(0, len(data) - start - _AFTER_PIXELS)) + _IDAT
    if data[:start] != expected_start or data[4 - _AFTER_PIXELS :] != _END:
        return False
    named, compressed = data[start - 4 : -_AFTER_PIXELS], data[start:-_AFTER_PIXELS]
    if isal_zlib.crc32(named).to_bytes(4, "big") != data[-_AFTER_PIXELS : 4 - _AFTER_PIXELS]:
        return False
    needed = height * (1 + 3 * width)
    inflate = isal_zlib.decompressobj()
    try:
        found = inflate.decompress(compressed, needed + 1)
    except isal_zlib.error:  # type: ignore[misc]  # isal's stub has an object for this class
        return False
    if len(found) != needed or not inflate.eof or inflate.unused_data:
        return False
    filtered = np.frombuffer(found, np.uint8).reshape(height, 1 + 3 * width)
    if (filtered[:, 0] != _SUB).any():
        return False
    np.add.accumulate(filtered[:, 1:].reshape(height, width, 3), axis=1, dtype=np.uint8, out=memory)
    return True


@functools.cache
def _header(height: int, width: int) -> bytes:
    """Signature and header of a PNG of 8-bit RGB that is not interlaced."""
    return SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(name))
    return b"".join((struct.pack(">I", len(body)), name, body, struct.pack(">I", checksum)))


_END = _chunk(b"IEND", b"")
