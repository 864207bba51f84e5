"""Every kind of source against pixels made in another way: numpy, files written by hand, or flips by hand."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from relic.pictures.decoding import Decoded, Size, read_header
from relic.pictures.decoding import decode as decode_header
from relic.pictures.jpeg import read_jpeg_header
from relic.pictures.reasons import MAX_PIXELS, Unreadable


def decode(data: bytes, least: Size | None = None) -> Decoded:
    return decode_header(read_header(data), least)


def rgb(data: bytes) -> NDArray[Any]:
    return np.asarray(decode(data).image.convert("RGB"))


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def patches(colours: int = 3) -> NDArray[Any]:
    """48 x 32 pixels in 8 x 8 blocks of one colour each: a JPEG keeps them, and all orientations differ."""
    blocks = np.random.default_rng(5).integers(0, 256, (4, 6, colours), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def assert_close(found: NDArray[Any], expected: NDArray[Any], levels: int) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


def without_segment(data: bytes, marker: int) -> bytes:
    place = 2
    while data[place + 1] != marker:
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return data[:place] + data[place + 2 + struct.unpack_from(">H", data, place + 2)[0] :]


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 1}])
def test_colour_jpeg(options: dict[str, object]) -> None:
    expected = patches()
    assert_close(rgb(save(Image.fromarray(expected), "JPEG", quality=100, subsampling=0, **options)), expected, 3)


def test_jpeg_stored_as_rgb() -> None:
    data = save(Image.fromarray(patches()), "JPEG", quality=100, subsampling=0, keep_rgb=True)
    assert read_jpeg_header(data).frame.components == 3
    assert_close(rgb(data), patches(), 2)


def test_grey_jpeg() -> None:
    grey = patches(1)[..., 0]
    assert_close(rgb(save(Image.fromarray(grey), "JPEG", quality=100)), np.stack([grey] * 3, axis=-1), 2)


@pytest.mark.parametrize("marker", ["with", "without"])
def test_cmyk_jpeg(marker: str) -> None:
    inks = patches(4)
    data = save(Image.frombytes("CMYK", (48, 32), inks.tobytes()), "JPEG", quality=100)
    data = without_segment(data, 0xEE) if marker == "without" else data
    assert (b"Adobe" in data) == (marker == "with")
    light = 255 - inks.astype(int)
    assert_close(rgb(data), np.round(light[..., :3] * light[..., 3:] / 255).astype(int), 4)


def test_ycck_jpeg() -> None:
    light = 255 - patches(4).astype(int)
    data = simplejpeg.encode_jpeg(light.astype(np.uint8), quality=100, colorspace="CMYK", colorsubsampling="444")
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    assert_close(rgb(data), np.round(light[..., :3] * light[..., 3:] / 255).astype(int), 5)


def test_deep_grey_is_scaled() -> None:
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    expected = np.stack([np.round(levels / 257).astype(int)] * 3, axis=-1)
    assert_close(rgb(save(Image.fromarray(levels), "PNG")), expected, 0)
    assert_close(rgb(save(Image.fromarray(levels), "TIFF")), expected, 0)


def test_deep_colour_is_scaled() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (9, 7, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    assert_close(rgb(png(7, 9, 16, 2, rows)), np.round(levels / 257).astype(int), 1)


def test_one_bit_and_grey_with_alpha() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (9, 16)).astype(bool)
    assert_close(rgb(save(Image.fromarray(bits), "PNG")), np.stack([bits * 255] * 3, axis=-1), 0)
    grey, alpha = patches(2).transpose(2, 0, 1).astype(int)
    data = save(Image.fromarray(patches(2), "LA"), "PNG")
    assert_close(rgb(data), np.stack([(grey * alpha + 255 * (255 - alpha)) / 255] * 3, axis=-1).round().astype(int), 1)


def test_alpha_is_laid_on_white() -> None:
    pixels = patches(4)
    colour, alpha = pixels[..., :3].astype(int), pixels[..., 3:].astype(int)
    expected = np.round((colour * alpha + 255 * (255 - alpha)) / 255).astype(int)
    assert_close(rgb(save(Image.fromarray(pixels), "PNG")), expected, 1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(kind: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 4, (8, 8), dtype=np.uint8)
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [250, 250, 0]], dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colours.tobytes())
    colours[2] = 255
    assert_close(rgb(save(image, kind, transparency=2)), colours[numbers], 0)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""From the upright image to the stored one (EXIF 2.32, tag 274: the sides of row 0 and column 0)."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation(orientation: int, kind: str) -> None:
    upright = patches()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    block = exif if kind == "TIFF" else exif.tobytes()
    header = read_header(save(stored, kind, exif=block, **options))
    assert header.full == (48, 32)
    assert_close(np.asarray(decode_header(header).image.convert("RGB")), upright, 3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40])
def test_a_broken_exif_block_is_no_reason(exif: bytes) -> None:
    image = Image.fromarray(patches())
    assert_close(rgb(save(image, "JPEG", quality=100, subsampling=0, exif=exif)), patches(), 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_close(rgb(data), np.asarray(frames[0]), 0)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_lossless_kinds(kind: str) -> None:
    assert_close(rgb(save(Image.fromarray(patches()), kind)), patches(), 0)


def bomb_png() -> bytes:
    return png(60_000, 60_000, 8, 2, b"")


def bomb_jpeg() -> bytes:
    data = bytearray(save(Image.fromarray(patches()), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def damaged(kind: str, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, len(mode)), dtype=np.uint8)
    data = bytearray(save(Image.frombytes(mode, (64, 64), noise.tobytes()), kind))
    place = len(data) // 2
    data[place : place + 8] = b"\xff\xd3\xff\xd9\xff\xd3\xff\xd9"
    return bytes(data)


def cut(kind: str, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, len(mode)), dtype=np.uint8)
    data = save(Image.frombytes(mode, (64, 64), noise.tobytes()), kind)
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "first bytes"),
        (b"\xff\xd8\xff", "JPEG ends"),
        (b"\xff\xd8\xff\xd9", "frame"),
        (b"\xff\xd8\xff\xdb\0\1", "impossible length"),
        (bomb_png(), "bomb"),
        (bomb_jpeg(), "bomb"),
        (cut("JPEG"), "[Pp]remature"),
        (cut("JPEG", "CMYK"), "[Pp]remature"),
        (cut("PNG"), "cut"),
        (cut("BMP"), "cut"),
        (damaged("JPEG"), "Corrupt|corrupt|[Pp]remature"),
        (damaged("JPEG", "CMYK"), "Corrupt|corrupt|[Pp]remature"),
        (damaged("PNG"), "."),
        (save(Image.new("F", (4, 4)), "TIFF"), "white level"),
        (save(Image.new("I", (4, 4)), "TIFF"), "white level"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(Unreadable, match="libwebp"):
        decode(b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20))


def test_every_cut_of_a_jpeg_is_rejected() -> None:
    data = save(Image.fromarray(patches()), "JPEG", quality=90)
    for length in range(3, len(data) - 2):
        with pytest.raises(Unreadable):
            decode(data[:length])


def test_bytes_after_the_end_do_no_harm() -> None:
    data = save(Image.fromarray(patches()), "JPEG", quality=100, subsampling=0)
    assert_close(rgb(data + b"trailing rubbish" * 9), patches(), 3)
    assert_close(rgb(data[:-2] + b"\0\0\0" + data[-2:]), patches(), 3)


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_pixel_wide(size: tuple[int, int], kind: str) -> None:
    assert_close(
        rgb(save(Image.new("RGB", size, (9, 99, 199)), kind, quality=100)), np.full((*size[::-1], 3), (9, 99, 199)), 2
    )


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_decode_covers_what_is_asked_and_looks_the_same(
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(make_photograph(640, 480, 1)), "JPEG", quality=95, exif=exif.tobytes())
    full = read_header(data).full
    exact, _ = decode(data)
    asked = Size(299, 224) if orientation == 1 else Size(224, 299)
    reduced, pixels = decode(data, asked)
    assert full == exact.size
    assert pixels is None
    assert reduced.size == (full.width // 2, full.height // 2)
    assert reduced.width >= asked.width
    assert reduced.height >= asked.height
    box = np.asarray(exact.convert("RGB").reduce(2)).astype(float)
    assert np.abs(box - np.asarray(reduced.convert("RGB"))).mean() < 3


@pytest.mark.parametrize("eighths", range(1, 9))
def test_a_reduced_decode_is_the_least_that_covers_up_to_half(
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]], eighths: int
) -> None:
    data = save(Image.fromarray(make_photograph(640, 480, 1)), "JPEG", quality=95)
    for asked in (Size(80 * eighths, 60 * eighths), Size(80 * eighths - 79, 60 * eighths), Size(80 * eighths, 1)):
        reduced = decode(data, asked).image
        scale = eighths if eighths <= 4 else 8
        assert reduced.size == (80 * scale, 60 * scale)


def test_the_pixel_limit_is_pillow_s() -> None:
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS
