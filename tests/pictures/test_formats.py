"""BMPs, GIFs and TIFFs that Pillow would misread: the right pixels, or a rejection."""

import struct

import numpy as np
import pytest

from tests.pictures.odd_files import bmp, gif, pixels_of, reason, tiff


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2), (8, 4), (8, 5)])
def test_compressed_bmp_is_rejected(bits: int, compression: int) -> None:
    row = b"\0\3\x12\x30\5\x22\0\0" if bits == 4 else b"\x08\1\0\0"
    assert "compressed BMP" in reason(bmp(bits, compression, row * 8 + b"\0\1"))


@pytest.mark.parametrize("place", [54, 20])
def test_a_bmp_whose_pixels_are_its_palette_is_rejected(place: int) -> None:
    data = bytearray(bmp(8, 0, bytes(64)))
    assert pixels_of(bytes(data)).shape == (8, 8, 3)
    struct.pack_into("<I", data, 10, place)
    assert "inside its header or its palette" in reason(bytes(data))


def test_a_bmp_without_its_last_byte_is_rejected() -> None:
    """Rows of 7 pixels have a byte of padding. If the missing byte is any other, all pixels after it have moved."""
    data = bytearray(bmp(8, 0, bytes(64)))
    data[18] = 7
    assert pixels_of(bytes(data)).shape == (8, 7, 3)
    assert "shorter than its rows" in reason(bytes(data[:-1]))


def test_what_the_first_frame_of_a_gif_leaves_is_white() -> None:
    expected = np.full((4, 4, 3), 255)
    expected[1:3, 2:4] = (255, 0, 0)
    np.testing.assert_array_equal(pixels_of(gif((2, 1, 2, 2))), expected)
    assert (pixels_of(gif((0, 0, 4, 4))) == (255, 0, 0)).all()
    assert "canvas" in reason(gif((2, 2, 4, 4)))
    assert "no pixels" in reason(gif((1, 1, 0, 0)))
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
    assert "tag 262" in reason(tiff(8, bytes(64)).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 261, 3)))
    assert "unknown size" in reason(b"II+\0" + struct.pack("<HHQ", 8, 1, 16) + bytes(60))
    assert "YCbCr" in reason(tiff(8, bytes(192), (262, 3, 6), samples=3))
    for bits, compression in ((1, 2), (1, 3), (1, 4), (1, 32771), (8, 6), (8, 7), (8, 50001)):
        assert "only none, LZW" in reason(tiff(bits, bytes(64), (259, 3, compression)))
    assert "floating-point" in reason(tiff(32, bytes(256), (339, 3, 3)))
    assert "up to 16 bits" in reason(tiff(32, bytes(256)))
    assert "TIFF" in reason(tiff(32, bytes(768), (339, 3, (3, 3, 3)), samples=3))
    assert "truncated" not in reason(tiff(14, bytes(112)))


def test_a_tiff_that_contradicts_itself() -> None:
    twice = tiff(8, bytes(64), (255, 3, 8)).replace(struct.pack("<HHI", 255, 3, 1), struct.pack("<HHI", 256, 3, 1))
    assert "tag 256 stands twice" in reason(twice)
    assert "tag 257 cannot" in reason(tiff(8, bytes(64), (257, 3, (8, 8))))
    assert "fewer strips" in reason(tiff(8, bytes(64), (257, 3, 12), (278, 3, 8)))
    assert "order of samples" in reason(tiff(8, bytes(64), (284, 3, 0)))
    signed = tiff(8, bytes(64), (339, 3, 2))
    for kind, count, value in ((0x4003, 1, 2), (3, 0, 2), (3, 3, len(signed)), (2, 1, 2), (5, 1, len(signed))):
        broken = signed.replace(struct.pack("<HHII", 339, 3, 1, 2), struct.pack("<HHII", 339, kind, count, value))
        assert "tag 339 cannot be read" in reason(broken)
    assert "strips and of tiles" in reason(tiff(8, bytes(64), (322, 3, 16), (323, 3, 16), (324, 3, 8), (325, 3, 64)))


def test_a_tile_that_is_cut_is_noticed_where_no_pixel_is_missing() -> None:
    """A tile of 16 x 16 for 8 x 8 pixels. If the missing byte is one before them, all have moved."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8] = RAMP.reshape(8, 8)
    start = 8 + 2 + 12 * 12 + 4
    tile = ((273, 3, None), (322, 3, 16), (323, 3, 16), (324, 3, start), (325, 3, 256))
    data = tiff(8, pixels.tobytes(), *tile)
    np.testing.assert_array_equal(pixels_of(data)[..., 0], RAMP.reshape(8, 8))
    assert "a tile ends after the file" in reason(data[:-1])


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
