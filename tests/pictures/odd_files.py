"""Odd image files, built byte by byte."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from relic.arrays import Pixels
from relic.pictures.decoding import decode, read_header
from relic.pictures.reasons import Unreadable

SIDE = 16
SMOOTH: Pixels = np.add.outer(np.arange(0, 128, 8), np.arange(0, 64, 4)).astype(np.uint8)
PHOTO: Pixels = np.dstack([SMOOTH, SMOOTH.T, 255 - SMOOTH])
"""16 x 16 pixels that a JPEG keeps within a few levels."""


def save(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PHOTO)).save(buffer, kind, **options)
    return buffer.getvalue()


PLAIN_PNG = save("PNG")


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(**options: Any) -> bytes:
    return save("JPEG", quality=95, subsampling=0, **options)


def in_header(data: bytes, extra: bytes) -> bytes:
    """`extra` after the JFIF segment, which is the first of Pillow's."""
    return data[:20] + extra + data[20:]


def exif_block(value: bytes, tag: int = 0x0112, kind: int = 3) -> bytes:
    return b"II*\0" + struct.pack("<IHHHI", 8, 1, tag, kind, 1) + value.ljust(4, b"\0") + bytes(4)


def exif_segment(value: bytes, tag: int = 0x0112, kind: int = 3) -> bytes:
    return segment(0xE1, b"Exif\0\0" + exif_block(value, tag, kind))


def to_bytes(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def difference(value: int, code: str) -> str:
    """The Huffman code of a difference's length in bits, and these bits (T.81 F.1.2.1)."""
    length = abs(value).bit_length()
    bits = value if value > 0 else value + (1 << length) - 1
    return format(length, code) + (format(bits, f"0{length}b") if length else "")


def flat_block_jpeg(blocks: npt.NDArray[np.int_], sampling: tuple[tuple[int, int], ...]) -> bytes:
    """A baseline JPEG in RGB of 8 x 8 blocks of one level: `blocks` (MCUs, blocks of an MCU), MCUs in one row.

    Only the DC coefficients are coded. Each is 8 times the level less 128, divided by its quantization step, 8.
    """
    across = max(horizontal for horizontal, _ in sampling)
    down = max(vertical for _, vertical in sampling)
    owners = [number for number, (h, v) in enumerate(sampling) for _ in range(h * v)]
    bits, before = "", [128] * len(sampling)
    for mcu in blocks:
        for owner, level in zip(owners, mcu.tolist(), strict=True):
            bits += difference(level - before[owner], "04b") + "0"
            before[owner] = level
    parts = b"".join(b"%c%c\0" % (b"RGB"[n], h << 4 | v) for n, (h, v) in enumerate(sampling))
    frame = struct.pack(">BHHB", 8, 8 * down, 8 * across * len(blocks), 3) + parts
    return b"".join(
        [
            b"\xff\xd8" + segment(0xDB, b"\0" + bytes([8] + [1] * 63)) + segment(0xC0, frame),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 10] + [0] * 12) + bytes(range(10))),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xDA, b"\3R\0G\0B\0\0\x3f\0") + to_bytes(bits) + b"\xff\xd9",
        ]
    )


def lossless_jpeg(pixels: Pixels) -> bytes:
    """Each sample is predicted from its left neighbour; differences have codes of 5 bits (T.81 annex H)."""
    height, width, _ = pixels.shape
    bits = []
    for y, row in enumerate(pixels.astype(int)):
        left = pixels[y - 1, 0].astype(int) if y else np.full(3, 128)
        for pixel in row:
            bits += [difference(int(value), "05b") for value in pixel - left]
            left = pixel
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"R\x11\0G\x11\0B\x11\0"
    table = b"\0" + bytes([0, 0, 0, 0, 17]) + bytes(11) + bytes(range(17))
    scan = segment(0xDA, b"\3R\0G\0B\0\1\0\0") + to_bytes("".join(bits))
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + scan + b"\xff\xd9"


def progressive_jpeg(scans: int) -> bytes:
    """8 x 8 pixels: a DC scan, then the same empty AC scan again and again."""
    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC2, struct.pack(">BHHB", 8, 8, 8, 1) + b"\1\x11\0")
    tables += b"".join(segment(0xC4, bytes([kind, 1]) + bytes(15) + b"\0") for kind in (0, 0x10))
    ac_scan = segment(0xDA, b"\1\1\0\1\x3f\0") + b"\x7f"
    return b"\xff\xd8" + tables + segment(0xDA, b"\1\1\0\0\0\0") + b"\x7f" + ac_scan * scans + b"\xff\xd9"


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def png(bits: int, colour: int, row: bytes, extra: bytes = b"", *, width: int = 8, height: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    image = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return b"\x89PNG\r\n\x1a\n" + header + extra + image + chunk(b"IEND", b"")


def bmp(bits: int, compression: int, data: bytes) -> bytes:
    palette = bytes(4 * (1 << bits))
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def gif(frame: tuple[int, int, int, int], *, palette: bool = True) -> bytes:
    """A canvas of 4 x 4; the frame (left, top, width, height) is of palette entry 1, which is red."""
    colours = bytes((0, 0, 255, 255, 0, 0)) if palette else b""
    pixels = frame[2] * frame[3]
    bits, code_bits = [], 3  # each pixel after a clear code, so that codes stay 3 bits long
    for _ in range(pixels):
        bits += [4, 1]
    packed = sum(code << code_bits * place for place, code in enumerate([*bits, 5]))
    data = packed.to_bytes(-(-3 * (len(bits) + 1) // 8), "little")
    screen = struct.pack("<HHBBB", 4, 4, 0x80 if palette else 0, 0, 0)
    return b"GIF89a" + screen + colours + b"," + struct.pack("<4HBBB", *frame, 0, 2, len(data)) + data + b"\0;"


def tiff(bits: int, data: bytes, *entries: tuple[int, int, Any], side: int = 8, samples: int = 1) -> bytes:
    """A little-endian TIFF of one strip. `entries` (tag, type, values) replace the usual ones; None leaves one out."""
    formats = {1: "B", 3: "H", 4: "I"}
    tags: dict[int, tuple[int, Any]] = {
        256: (3, side),
        257: (3, side),
        258: (3, (bits,) * samples),
        259: (3, 1),
        262: (3, 1 if samples == 1 else 2),
        277: (3, samples),
        278: (3, side),
        279: (4, len(data)),
        **{tag: (kind, values) for tag, kind, values in entries},
    }
    tags.setdefault(273, (4, 0))
    tags = {tag: entry for tag, entry in tags.items() if entry[1] is not None}
    place = 8 + 2 + 12 * len(tags) + 4
    table, rest = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        values = values if isinstance(values, tuple) else (values,)
        if tag == 273 and kind == 4:
            table += b"OFFSETS!" + bytes(4)
            continue
        body = struct.pack(f"<{len(values)}{formats[kind]}", *values)
        inline = body.ljust(4, b"\0") if len(body) <= 4 else struct.pack("<I", place + len(rest))
        rest += body if len(body) > 4 else b""
        table += struct.pack("<HHI", tag, kind, len(values)) + inline
    table = table.replace(b"OFFSETS!" + bytes(4), struct.pack("<HHII", 273, 4, 1, place + len(rest)))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4) + rest + data


def pixels_of(data: bytes) -> Pixels:
    return np.asarray(decode(read_header(data)).image.convert("RGB"))


def reason(data: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        pixels_of(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)
