"""PNGs of crops, against Pillow and zlib; all that is not exactly one of them is left to another decoder."""

import hashlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from relic.arrays import Pixels
from relic.pictures.crop_png import decode_crop_png, encode_crop_png
from tests.pictures.odd_files import PHOTO, chunk, save

HEIGHT, WIDTH, _ = PHOTO.shape
PACKED = encode_crop_png(PHOTO)


def decoded(data: bytes, height: int = HEIGHT, width: int = WIDTH) -> Pixels | None:
    """The pixels, or None if the PNG is left to another decoder. In that case the memory must be as it was."""
    memory = np.full((height, width, 3), 77, np.uint8)
    if decode_crop_png(memoryview(bytearray(data)), memory):
        return memory
    assert (memory == 77).all()
    return None


def with_stream(stream: bytes) -> bytes:
    """A PNG of PHOTO's size whose compressed pixels are `stream`, with the right checksum."""
    return PACKED[:33] + chunk(b"IDAT", stream) + PACKED[-12:]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 1), (2, 2), (9, 13), (224, 224), (300, 7)])
def test_every_reader_has_the_same_pixels(height: int, width: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    data = encode_crop_png(pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
        np.testing.assert_array_equal(np.asarray(image), pixels)
    found = decoded(data, height, width)
    assert found is not None
    np.testing.assert_array_equal(found, pixels)


def test_pixels_that_are_a_view_of_others() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 20, 4), np.uint8)
    assert encode_crop_png(wide[:, 3:11, :3]) == encode_crop_png(wide[:, 3:11, :3].copy())


def test_every_row_has_the_filter_sub() -> None:
    rows = np.frombuffer(zlib.decompress(PACKED[41:-16]), np.uint8).reshape(HEIGHT, 1 + 3 * WIDTH)
    assert (rows[:, 0] == 1).all()
    np.testing.assert_array_equal(rows[:, 1:].reshape(PHOTO.shape)[:, 1:], PHOTO[:, 1:] - PHOTO[:, :-1])


def test_equal_pixels_give_equal_bytes_on_every_machine() -> None:
    """The bytes of isal 1.9.1. With a version that writes others, folders that were begun are not continued."""
    ramp = np.add.outer(np.arange(96), np.arange(80)) // 2
    noise = np.frombuffer(hashlib.shake_256(b"noise").digest(96 * 80 * 3), np.uint8) & 7
    pixels = (ramp[..., None] + noise.reshape(96, 80, 3)).astype(np.uint8)
    digest = hashlib.sha256(encode_crop_png(pixels)).hexdigest()
    assert digest == "6c1b0488fff6e1718699185e2352c09c0596a17a40eea0dd0504d35443d192f7"


def test_no_flipped_bit_is_decoded() -> None:
    for place in range(8 * len(PACKED)):
        damaged = bytearray(PACKED)
        damaged[place // 8] ^= 1 << place % 8
        assert decoded(bytes(damaged)) is None


def test_no_cut_or_longer_file_is_decoded() -> None:
    for length in range(len(PACKED)):
        assert decoded(PACKED[:length]) is None
    for more in (b"\0", PACKED[-12:], PACKED):
        assert decoded(PACKED + more) is None


@pytest.mark.parametrize(
    "data",
    [
        save("PNG"),
        save("PNG", Image.fromarray(PHOTO).convert("L")),
        save("PNG", Image.fromarray(PHOTO).convert("P")),
        save("JPEG"),
        PACKED[:33] + chunk(b"tEXt", b"a\0b") + PACKED[33:],
        PACKED[:33] + chunk(b"tRNS", bytes(6)) + PACKED[33:],
        PACKED[:33] + chunk(b"IDAT", PACKED[41:60]) + chunk(b"IDAT", PACKED[60:-16]) + PACKED[-12:],
        with_stream(zlib.compress(zlib.decompress(PACKED[41:-16]))[:-4] + bytes(4)),  # wrong Adler-32
        with_stream(PACKED[41:-16] + b"\0"),
        with_stream(zlib.compress(zlib.decompress(PACKED[41:-16])[:-1])),
        with_stream(zlib.compress(zlib.decompress(PACKED[41:-16]) + b"\1")),
        with_stream(zlib.compress(b"\2" + zlib.decompress(PACKED[41:-16])[1:])),  # its first row has the filter `up`
        with_stream(b""),
    ],
)
def test_any_other_png_is_left_to_another_decoder(data: bytes) -> None:
    assert decoded(data) is None


def test_a_png_of_another_size_is_left_to_another_decoder() -> None:
    assert decoded(PACKED, HEIGHT, WIDTH + 1) is None
    assert decoded(encode_crop_png(PHOTO[:8]), 4, 32) is None


def test_a_stream_that_is_too_long_takes_no_memory() -> None:
    data = with_stream(zlib.compress(bytes(50_000_000)))
    tracemalloc.start()
    assert decoded(data) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_compressed_stream_of_another_program_is_decoded() -> None:
    found = decoded(with_stream(zlib.compress(zlib.decompress(PACKED[41:-16]))))
    assert found is not None
    np.testing.assert_array_equal(found, PHOTO)


def test_the_header_is_the_standards() -> None:
    assert PACKED[:33] == b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    assert PACKED[-12:] == b"\0\0\0\0IEND\xaeB`\x82"
