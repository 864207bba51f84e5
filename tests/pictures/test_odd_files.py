"""Odd and hostile files: equal pixels in every command, or a rejection with a true reason."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.folder import read_image
from export.codec import read_image as read_picture
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


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2), (8, 4), (8, 5)])
def test_compressed_bmp_is_rejected(bits: int, compression: int) -> None:
    row = b"\0\3\x12\x30\5\x22\0\0" if bits == 4 else b"\x08\1\0\0"
    assert "compressed BMP" in reason(bmp(bits, compression, row * 8 + b"\0\1"))


def test_what_the_first_frame_of_a_gif_leaves_is_white() -> None:
    expected = np.full((4, 4, 3), 255)
    expected[1:3, 2:4] = (255, 0, 0)
    np.testing.assert_array_equal(pixels_of(gif((2, 1, 2, 2))), expected)
    assert (pixels_of(gif((0, 0, 4, 4))) == (255, 0, 0)).all()
    assert "canvas" in reason(gif((2, 2, 4, 4)))
    assert "palette" in reason(gif((0, 0, 4, 4), palette=False))


RAMP = np.arange(64, dtype=np.uint8)


def test_tiffs_that_pillow_misreads() -> None:
    deep = np.arange(64, dtype="<u2") * 1000
    np.testing.assert_array_equal(pixels_of(tiff(16, deep.tobytes()))[..., 0].ravel(), np.round(deep / 257))
    inverted = pixels_of(tiff(16, deep.tobytes(), (262, 3, 0)))
    np.testing.assert_array_equal(inverted[..., 0].ravel(), np.round((65535 - deep.astype(int)) / 257))
    planes = np.stack([RAMP, RAMP + 50, RAMP + 100])
    separate = pixels_of(tiff(8, planes.tobytes(), (284, 3, 2), *three_strips(64), samples=3))
    np.testing.assert_array_equal(separate.reshape(64, 3).T, planes)
    assert "separate 16-bit planes" in reason(tiff(16, bytes(384), (284, 3, 2), *three_strips(128), samples=3))
    for bits in (8, 16):
        assert "signed" in reason(tiff(bits, bytes(8 * bits), (339, 3, 2)))
    assert "not stored" in reason(tiff(8, bytes(64), (273, 3, (0, 0)), (278, 3, 4), (279, 3, (32, 32))))
    assert "YCbCr" in reason(tiff(8, bytes(192), (262, 3, 6), samples=3))
    for bits, compression in ((1, 2), (1, 3), (1, 4), (1, 32771), (8, 6), (8, 7), (8, 50001)):
        assert "only none, LZW" in reason(tiff(bits, bytes(64), (259, 3, compression)))
    assert "floating-point" in reason(tiff(32, bytes(256), (339, 3, 3)))
    assert "up to 16 bits" in reason(tiff(32, bytes(256)))
    assert "TIFF" in reason(tiff(32, bytes(768), (339, 3, (3, 3, 3)), samples=3))
    assert "truncated" not in reason(tiff(14, bytes(112)))


def test_a_fourth_tiff_sample_is_alpha_only_if_the_file_says_so() -> None:
    pixels = np.dstack([RAMP, RAMP + 50, RAMP + 100, RAMP * 4])
    alpha = RAMP[:, None] * 4 / 255
    on_white = np.round(pixels[0, :, :3] * alpha + 255 * (1 - alpha))
    found = pixels_of(tiff(8, pixels.tobytes(), (338, 3, 2), samples=4)).reshape(64, 3)
    assert np.abs(found - on_white).max() <= 1
    assert "whether that is alpha" in reason(tiff(8, pixels.tobytes(), (338, 3, 0), samples=4))


@pytest.mark.parametrize("alpha", [0, 0x8000])
def test_the_alpha_of_a_16_bit_bmp_is_not_passed_over(alpha: int) -> None:
    masks = struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, alpha)
    header = struct.pack("<IiiHHIIiiII", 56, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 14 + 56 + 128, 0, 0, 14 + 56) + header + struct.pack("<H", 0x7C00) * 64
    if alpha:
        assert "16-bit pixels with alpha" in reason(data)
    else:
        assert (pixels_of(data) == (255, 0, 0)).all()


def three_strips(size: int) -> tuple[tuple[int, int, tuple[int, int, int]], ...]:
    """Offsets and lengths of the strips of three planes. The strips follow 11 tags and 5 lists of values."""
    start = 8 + 2 + 12 * 10 + 4 + 6 + 6 + 6
    return (273, 3, (start, start + size, start + 2 * size)), (279, 3, (size, size, size))


@pytest.mark.parametrize("scale", [1, 256])
def test_a_tiff_colour_map_of_8_or_16_bits(scale: int) -> None:
    colours = np.random.default_rng(0).integers(1, 256, (3, 256))
    found = pixels_of(tiff(8, RAMP.tobytes(), (262, 3, 3), (320, 3, tuple((colours * scale).ravel().tolist()))))
    np.testing.assert_array_equal(found.reshape(64, 3), colours.T[:64])


def test_a_tiff_of_tags_that_are_all_the_same_bytes() -> None:
    tags = [(40000 + number, 1, tuple(range(256)) * 8) for number in range(50)]
    data = tiff(8, bytes(64), *tags)
    assert pixels_of(data).shape == (8, 8, 3)
    many = bytearray(tiff(8, bytes(64), *[(40000 + n, 1, 0) for n in range(1000)]))
    for place in range(10, 10 + 12 * 1009, 12):
        if struct.unpack_from("<H", many, place)[0] >= 40000:
            struct.pack_into("<II", many, place + 4, len(many), 0)
    assert "more bytes than the file has" in reason(bytes(many))


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
        (b"II+\0" + bytes(4) + b"\xff" * 8, "TIFF that is damaged"),
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
    monkeypatch.setattr("relic.pictures.reading._flatten", fail)
    for read in (read_image, read_picture):
        with pytest.raises(InputError, match=r"x\.png.*out of memory"):
            read(tmp_path / "x.png")
