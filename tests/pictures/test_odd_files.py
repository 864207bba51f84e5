"""Odd and hostile files: equal pixels in every command, or a rejection with a true reason."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.folder import read_image
from export.codec import read_rgb as read_picture
from relic.errors import InputError
from relic.pictures.decoding import Size, decode, read_header
from relic.pictures.reasons import MAX_PIXELS
from relic.pictures.turbo import decode_jpeg
from tests.pictures.odd_files import (
    PHOTO,
    PLAIN_PNG,
    SMOOTH,
    bmp,
    chunk,
    exif_block,
    exif_segment,
    flat_block_jpeg,
    gif,
    in_header,
    jpeg,
    lossless_jpeg,
    pixels_of,
    png,
    progressive_jpeg,
    reason,
    save,
    segment,
    tiff,
)

PROGRESSIVE = jpeg(progressive=True)
RESTARTS = save("JPEG", quality=95, subsampling=0, restart_marker_blocks=1)
SECOND_SCAN = PROGRESSIVE.index(b"\xff\xc4", PROGRESSIVE.index(b"\xff\xda"))
HARMLESS = {
    "padding before a table": in_header(jpeg(), bytes(3)),
    "other bytes before a table": in_header(jpeg(), b"xyz"),
    "comment of impossible length": in_header(jpeg(), b"\xff\xfe\0\1" + b"comment"),
    "JFIF 2.00": jpeg()[:11] + b"\2\0" + jpeg()[13:],
    "JFIF twice": in_header(jpeg(), jpeg()[2:20]),
    "Adobe transform 2 of 3 components": b"\xff\xd8" + segment(0xEE, b"Adobe\0\x64\0\0\0\0\2") + jpeg()[20:],
    "profile part 0 of 0": in_header(jpeg(), segment(0xE2, b"ICC_PROFILE\0\0\0" + bytes(200))),
    "profile part 2 of 2 alone": in_header(jpeg(), segment(0xE2, b"ICC_PROFILE\0\2\2" + bytes(200))),
    "between scans": PROGRESSIVE[:SECOND_SCAN] + bytes(30) + PROGRESSIVE[SECOND_SCAN:],
    "before a restart": RESTARTS.replace(b"\xff\xd0", bytes(20) + b"\xff\xd0", 1),
    "before the end": jpeg()[:-2] + bytes(64) + jpeg()[-2:],
    "after the end": jpeg() + b"more",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_oddity_that_decides_no_pixel_changes_none(name: str) -> None:
    plain = {"between scans": PROGRESSIVE, "before a restart": RESTARTS}.get(name, jpeg())
    assert HARMLESS[name] != plain
    np.testing.assert_array_equal(pixels_of(HARMLESS[name]), pixels_of(plain))
    np.testing.assert_array_equal(decode_jpeg(memoryview(HARMLESS[name]), "RGB"), pixels_of(plain))  # the loader's way


def test_damage_after_an_oddity_is_still_found() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = bytearray(in_header(save("JPEG", noise), bytes(3)))
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff\xd3\xff\xd9" * 2
    assert "orrupt" in reason(bytes(data)) or "remature" in reason(bytes(data))
    # The rest of damaged pixels, not padding. libjpeg reads some bytes ahead, so a few would pass without a word.
    assert "20 extraneous bytes" in reason(RESTARTS.replace(b"\xff\xd0", b"\x55\x33" * 10 + b"\xff\xd0", 1))


def test_a_thumbnail_is_not_taken_for_its_image() -> None:
    """The length of the EXIF segment ends before the thumbnail in it, so the thumbnail's segments come next."""
    exif = segment(0xE1, b"Exif\0\0" + exif_block(SIX))
    assert "second start of image" in reason(in_header(jpeg(), exif + save("JPEG", WIDE)))


@pytest.mark.parametrize(
    "sampling", [((2, 1), (2, 1), (2, 1)), ((1, 3), (1, 3), (1, 3)), ((1, 2), (1, 2), (1, 2)), ((3, 1), (3, 1), (3, 1))]
)
def test_sampling_factors_without_a_name(sampling: tuple[tuple[int, int], ...]) -> None:
    across, down = sampling[0]
    levels = np.random.default_rng(1).integers(0, 256, (3, 3, down, across))  # MCU, component, row, column
    found = pixels_of(flat_block_jpeg(levels.reshape(3, -1), sampling))
    expected = levels.transpose(2, 0, 3, 1).reshape(down, 3 * across, 3).repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(found, expected)
    row = np.empty(expected.shape, np.uint8)
    assert decode_jpeg(flat_block_jpeg(levels.reshape(3, -1), sampling), "RGB", row).shape == expected.shape
    np.testing.assert_array_equal(row, expected)


def test_cmyk_with_subsampled_inks() -> None:
    inks = Image.fromarray(np.dstack([255 - PHOTO, np.zeros_like(SMOOTH)]), "CMYK")
    found = pixels_of(save("JPEG", inks, quality=95, subsampling=2))
    assert np.abs(found.astype(int) - PHOTO).mean() < 6


@pytest.mark.parametrize("least", [None, Size(8, 8)])
def test_a_lossless_jpeg_is_never_reduced(least: Size | None) -> None:
    found = decode(read_header(lossless_jpeg(PHOTO)), least).image.convert("RGB")
    np.testing.assert_array_equal(np.asarray(found), PHOTO)


def test_a_jpeg_of_thousands_of_scans_is_rejected() -> None:
    assert pixels_of(progressive_jpeg(100)).shape == (8, 8, 3)
    assert "500 scans" in reason(progressive_jpeg(5000))
    with pytest.raises(ValueError, match="500 scans"):
        decode_jpeg(progressive_jpeg(5000), "RGB")


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [pixels_of(data) for data in (jpeg(), HARMLESS["padding before a table"])]
    monkeypatch.setattr("relic.pictures.turbo.simplejpeg", None)
    np.testing.assert_array_equal(pixels_of(jpeg()), expected[0])
    np.testing.assert_array_equal(pixels_of(HARMLESS["padding before a table"]), expected[1])


SIX = b"\6"
WIDE = Image.fromarray(np.zeros((8, 24, 3), np.uint8))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def wide(extra: bytes) -> bytes:
    data = save("JPEG", WIDE)
    return b"\xff\xd8" + extra + data[2:]


@pytest.mark.parametrize(
    ("data", "turned"),
    [
        (wide(exif_segment(SIX) + exif_segment(b"a", 0x0131, 2)), True),
        (wide(exif_segment(SIX) + exif_segment(b"\1")), True),
        (wide(exif_segment(b"\1") + exif_segment(SIX)), False),
        (wide(exif_segment(b"a", 0x0131, 2) + exif_segment(SIX)), False),
        (wide(exif_segment(SIX, kind=1)), True),
        (wide(exif_segment(SIX, kind=4)), True),
        (wide(exif_segment(b"\x09")), False),
        (wide(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)), False),
        (save("PNG", WIDE, exif=exif_block(SIX, kind=1)), True),
        (save("WEBP", WIDE, exif=exif_block(SIX)), True),
        (save("WEBP", WIDE, xmp=XMP), False),
        (save("PNG", WIDE)[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + save("PNG", WIDE)[33:], False),
        (tiff(8, bytes(24 * 8), (256, 3, 24), (274, 1, 6)), True),
        (tiff(8, bytes(24 * 8), (256, 3, 24), (274, 3, 6)), True),
        (tiff(8, bytes(24 * 8), (256, 3, 24), (700, 1, tuple(XMP))), False),
    ],
)
def test_every_command_turns_alike(tmp_path: Path, data: bytes, turned: bool) -> None:
    shape = (24, 8, 3) if turned else (8, 24, 3)
    (tmp_path / "x.jpg").write_bytes(data)
    assert pixels_of(data).shape == read_image(tmp_path / "x.jpg").shape == read_picture(tmp_path / "x.jpg").shape
    assert pixels_of(data).shape == shape
    assert read_header(data).full == shape[1::-1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%BeginBinary: -19\n" + bytes(20),
            "first bytes",
        ),
        (b"SIMPLE  =                    T".ljust(2880), "first bytes"),
        (b"8BPS\0\1" + bytes(40), "first bytes"),
        (b"P6 1 1 255\nabc", "first bytes"),
        (b"<svg/>", "first bytes"),
        (PLAIN_PNG[:20], "PNG that is damaged"),
        (PLAIN_PNG[:33], "PNG that is damaged, or of a kind that Pillow cannot decode: it ends too early"),
        (
            bmp(8, 0, bytes(64)).replace(struct.pack("<HHI", 1, 8, 0), struct.pack("<HHI", 1, 7, 0)),
            "BMP that is damaged, or",
        ),
        (PLAIN_PNG[:8] + chunk(b"CgBI", bytes(4)) + PLAIN_PNG[8:], "CgBI"),
        (png(8, 2, b"", width=60_000, height=60_000)[:60], "bomb"),
        (save("WEBP")[:30], "WebP that is damaged"),
        (gif((0, 0, 4, 4)).replace(struct.pack("<HH", 4, 4), struct.pack("<HH", 60_000, 60_000), 1), "bomb"),
        (b"GIF89a", "GIF that is damaged"),
        (b"BM", "BMP that is damaged"),
        (b"II*\0\xff\xff\xff\xff", "TIFF that is damaged"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, "TIFF that is damaged"),
    ],
)
def test_a_rejection_names_the_kind_of_file(data: bytes, said: str) -> None:
    assert said in reason(data)


def test_what_is_no_regular_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty.png").touch()
    for name, said in {
        "pipe.png": "not a regular file",
        "linked.png": "not a regular file",
        "device.png": "not a regular file",
        "loop.png": "cannot be read",
        "empty.png": "empty",
        "none.png": "cannot be read",
    }.items():
        for read in (read_image, read_picture):
            with pytest.raises(InputError, match=f"{name}.*{said}"):
                read(tmp_path / name)


def test_large_images_are_refused_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(8, 2, b"", width=12_000, height=12_000)[:60])
    assert MAX_PIXELS < 12_000 * 12_000
    for read in (read_image, read_picture):
        with pytest.raises(InputError, match=r"x\.png.*bomb"):
            read(tmp_path / "x.png")


def test_out_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    (tmp_path / "x.png").write_bytes(PLAIN_PNG)
    monkeypatch.setattr("relic.pictures.pillow._flatten", fail)
    for read in (read_image, read_picture):
        with pytest.raises(InputError, match=r"x\.png.*out of memory"):
            read(tmp_path / "x.png")
