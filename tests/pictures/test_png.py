"""PNGs whose chunks are odd, out of place, damaged or in contradiction, against ISO/IEC 15948 and what libpng does."""

import struct
import zlib

import numpy as np
import pytest
from PIL import ImageCms

from tests.pictures.odd_files import PHOTO, PLAIN_PNG, chunk, pixels_of, png, reason


def swapping_profile() -> bytes:
    """A profile that swaps red and blue."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = icc.index(b"rXYZ", 128), icc.index(b"bXYZ", 128)
    icc[red : red + 4], icc[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(icc)


def in_png(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile))


def patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


BIG = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0hello", 1),
        chunk(b"prVt", b"xyz", 1),
        chunk(b"zTXt", b"Comment\0\x63" + zlib.compress(b"x")),
        chunk(b"gAMA", b""),
        chunk(b"zTXt", b"workflow\0\0" + BIG),
        chunk(b"iCCP", b"icc\0\0" + BIG),
        chunk(b"iCCP", b"icc\0\0broken"),
        chunk(b"pHYs", b"1"),
        chunk(b"tRNS", bytes(6), 1),
        chunk(b"tRNS", bytes(5)),
        chunk(b"eXIf", b"broken"),
        chunk(b"PLTE", bytes(771)),
        chunk(b"PLTE", b"") * 2,
    ],
)
def test_side_chunks_of_a_png_reject_nothing(extra: bytes) -> None:
    np.testing.assert_array_equal(pixels_of(PLAIN_PNG[:33] + extra + PLAIN_PNG[33:]), PHOTO)


PALETTE = chunk(b"PLTE", bytes((200, 0, 0, 0, 0, 200)))
TWO_COLOURS = png(1, 3, b"\xf0", PALETTE)
"""Four pixels of entry 1 (blue), then four of entry 0 (red), in each row."""


@pytest.mark.parametrize(
    "extra",
    [
        PALETTE + chunk(b"tRNS", bytes(3)),  # more values than entries
        PALETTE + chunk(b"tRNS", b""),
        chunk(b"tRNS", bytes(2)) + PALETTE,
        PALETTE + in_png(swapping_profile()),
        in_png(swapping_profile()[:-4]) + PALETTE,
        in_png(patched(swapping_profile(), 64, b"\1")) + PALETTE,
        in_png(patched(swapping_profile(), 16, b"GRAY")) + PALETTE,
        in_png(b"") + PALETTE,
    ],
)
def test_a_side_chunk_that_libpng_does_not_count_decides_nothing(extra: bytes) -> None:
    np.testing.assert_array_equal(pixels_of(png(1, 3, b"\xf0", extra)), pixels_of(TWO_COLOURS))
    after = TWO_COLOURS[:-12] + chunk(b"tRNS", bytes(2)) + TWO_COLOURS[-12:]
    np.testing.assert_array_equal(pixels_of(after), pixels_of(TWO_COLOURS))
    assert pixels_of(TWO_COLOURS)[0, [0, 4]].tolist() == [[0, 0, 200], [200, 0, 0]]
    clear = pixels_of(png(1, 3, b"\xf0", PALETTE + chunk(b"tRNS", b"\0") + chunk(b"tRNS", bytes(2))))
    assert clear[0, [0, 4]].tolist() == [[0, 0, 200], [255, 255, 255]]  # the first counts


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(1, 3, b"\xf0", PALETTE + PALETTE), "palette"),
        (png(1, 3, b"\xf0", chunk(b"PLTE", b"")), "palette"),
        (png(1, 3, b"\xf0", chunk(b"PLTE", bytes(4))), "palette"),
        (TWO_COLOURS[:-12] + PALETTE + TWO_COLOURS[-12:], "palette"),
        (png(8, 2, bytes(24), chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 8, 2, 0, 0, 0))), "header"),
        (PLAIN_PNG[:8] + PALETTE + PLAIN_PNG[8:], "header"),
        (PLAIN_PNG[:-13], "cut"),
        (PLAIN_PNG[:33] + chunk(b"tR\x0eS", bytes(6)) + PLAIN_PNG[33:], "impossible name"),
        (PLAIN_PNG[:33] + chunk(b"IDAT", PLAIN_PNG[41:-16], 1) + PLAIN_PNG[-12:], "checksum"),
        (PLAIN_PNG[:8] + chunk(b"IHDR", PLAIN_PNG[16:26] + b"\x80\0\0") + PLAIN_PNG[33:], "method"),
        (PLAIN_PNG[:8] + chunk(b"IHDR", PLAIN_PNG[16:26] + b"\0\0\2") + PLAIN_PNG[33:], "method"),
    ],
)
def test_a_png_whose_chunks_contradict_each_other_is_rejected(data: bytes, said: str) -> None:
    assert said in reason(data)


def test_a_profile_of_colours_does_not_count_for_a_grey_png() -> None:
    """libpng's rule. This profile makes greys darker or lighter: its curves are of power 1, not sRGB's."""
    icc = swapping_profile()
    curve = icc.index(b"para\0\0\0\0\0\3") + 12
    linear = patched(icc, curve, struct.pack(">i", 1 << 16))
    row = bytes(range(0, 160, 20))
    np.testing.assert_array_equal(pixels_of(png(8, 0, row, in_png(linear)))[0, :, 0], list(row))
    colours = pixels_of(png(8, 2, bytes(np.repeat(list(row), 3).tolist()), in_png(linear)))[0, :, 0]
    assert np.abs(colours.astype(int) - list(row)).max() > 20


def test_a_large_profile_of_a_png_is_applied() -> None:
    """With 2 MB after its tags: Pillow's limit for text is 1 MiB."""
    icc = bytearray(swapping_profile() + bytes(2_000_000))
    icc[:4] = struct.pack(">I", len(icc))
    data = PLAIN_PNG[:33] + in_png(bytes(icc)) + PLAIN_PNG[33:]
    assert np.abs(pixels_of(data).astype(int) - PHOTO[..., ::-1]).max() <= 2


@pytest.mark.parametrize(
    ("bits", "row", "level"),
    [
        (1, b"\xf0", 1),
        (2, b"\xaa\x00", 2),
        (4, b"\x77\x77\x00\x00", 7),
        (8, b"\x77" * 4 + bytes(4), 0x77),
        (16, struct.pack(">8H", *[30000] * 3, 30001, *[0] * 4), 30000),
    ],
)
def test_the_transparent_level_of_a_grey_png(bits: int, row: bytes, level: int) -> None:
    found = pixels_of(png(bits, 0, row, chunk(b"tRNS", struct.pack(">H", level))))
    assert (found[:, :3] == 255).all()
    assert (found[:, 4:] == 0).all()
    if bits == 16:  # the same 8 bits, another level
        assert (found[:, 3] == round(30001 / 257)).all()


def test_the_transparent_colour_of_a_png() -> None:
    clear = chunk(b"tRNS", struct.pack(">HHH", 9, 8, 7))
    found = pixels_of(png(8, 2, bytes((9, 8, 7)) * 4 + bytes((9, 8, 6)) * 4, clear))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == (9, 8, 6)).all()
    assert "16-bit" in reason(png(16, 2, bytes(48), clear))


def one_idat(rows: bytes, *, width: int, height: int, interlaced: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced))
    return PLAIN_PNG[:8] + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (1, 1), (5, 3), (3, 1), (1, 7), (13, 9)])
def test_compressed_pixels_that_end_early_are_noticed(width: int, height: int, interlaced: int) -> None:
    """All checksums are right: a broken writer's file. Pillow would leave the missing pixels black."""
    pixels = np.arange(1, width * height + 1, dtype=np.uint8).reshape(height, width)
    pixels[-1] = 0
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[top::down, left::across] for top, left, down, across in adam7] if interlaced else [pixels]
    rows = [b"\0" + row.tobytes() for part in passes if part.size for row in part]
    whole = one_idat(b"".join(rows), width=width, height=height, interlaced=interlaced)
    np.testing.assert_array_equal(pixels_of(whole)[..., 0], pixels)
    cut_in_row = one_idat(b"".join(rows)[:-1], width=width, height=height, interlaced=interlaced)
    assert "truncated" in reason(cut_in_row)
    cut_between_rows = one_idat(b"".join(rows[:-1]), width=width, height=height, interlaced=interlaced)
    assert "end before" in reason(cut_between_rows) or len(rows) == 1
