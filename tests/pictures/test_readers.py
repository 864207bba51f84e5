"""prep, evaluate and export read a set of unusual files equally, and as computed here."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from evaluate.folder import read_image
from export.codec import read_rgb as read_picture
from relic.arrays import Pixels
from relic.pictures.decoding import decode, read_header
from relic.pictures.listing import list_images, list_sources
from relic.pictures.pillow import apply_profile

COLOURS = np.random.default_rng(5).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
GREY = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
PALETTE = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [250, 250, 0]], dtype=np.uint8)
NUMBERS = np.random.default_rng(0).integers(0, 4, (8, 8), dtype=np.uint8)


def by_prep(path: Path) -> Pixels:
    return np.asarray(decode(read_header(path.read_bytes())).image.convert("RGB"))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise
    return exif


def write_files(folder: Path) -> dict[str, tuple[npt.NDArray[np.int_], int]]:
    """The name of each file, its expected pixels, and the largest error allowed, in levels."""
    opaque = Image.fromarray(COLOURS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = np.round(GREY / 257).astype(int)[..., None].repeat(3, axis=2)
    alpha = COLOURS[..., :1].astype(int)
    palette = Image.fromarray(NUMBERS, "P")
    palette.putpalette(PALETTE.tobytes())
    shown = PALETTE[NUMBERS].astype(int)
    seen_through = np.where((NUMBERS == 2)[..., None], 255, shown)
    Image.fromarray(GREY).save(folder / "deep.png")
    Image.fromarray(GREY).save(folder / "deep.tif")
    palette.save(folder / "palette.gif", transparency=2)
    palette.save(folder / "palette.png")
    opaque.save(folder / "srgb.png", icc_profile=srgb)
    opaque.save(folder / "turned.png", exif=turned())
    opaque.save(folder / "turned.jpg", exif=turned(), quality=100, subsampling=0)
    Image.fromarray(np.dstack([COLOURS, COLOURS[..., 0]])).save(folder / "alpha.png")
    inks = Image.fromarray(np.dstack([255 - COLOURS, 0 * COLOURS[..., 0]]), "CMYK")
    inks.save(folder / "cmyk.jpg", quality=100)
    frames = [opaque, Image.new("RGB", opaque.size, "blue")]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    whole = COLOURS.astype(int)
    return {
        "deep.png": (grey, 0),
        "deep.tif": (grey, 0),
        "palette.gif": (seen_through, 0),
        "palette.png": (shown, 0),
        "srgb.png": (whole, 0),
        "turned.png": (np.rot90(whole, -1), 0),
        "turned.jpg": (np.rot90(whole, -1), 3),
        "alpha.png": (np.round((whole * alpha + 255 * (255 - alpha)) / 255).astype(int), 1),
        "cmyk.jpg": (whole, 4),
        "animated.png": (whole, 0),
    }


def test_three_readers_give_the_pixels_of_one_oracle(tmp_path: Path) -> None:
    expected = write_files(tmp_path)
    assert list_images(tmp_path) == [source.path for source in list_sources(tmp_path)] == sorted(expected)
    for name, (pixels, levels) in expected.items():
        found = by_prep(tmp_path / name)
        assert found.shape == pixels.shape, name
        assert np.abs(found.astype(int) - pixels).max() <= levels, name
        np.testing.assert_array_equal(read_image(tmp_path / name), found, err_msg=name)
        np.testing.assert_array_equal(read_picture(tmp_path / name), found, err_msg=name)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_s_jpeg_is_read_alike(tmp_path: Path, subsampling: int, progressive: bool) -> None:
    small = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photograph = Image.fromarray(small).resize((161, 119), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "x.jpg", quality=85, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), by_prep(tmp_path / "x.jpg"))


def test_a_wide_profile_is_converted_by_all(tmp_path: Path) -> None:
    """A profile that swaps red and blue: the sRGB pixels are the stored pixels with these two swapped."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = icc.index(b"rXYZ", 128), icc.index(b"bXYZ", 128)
    icc[red : red + 4], icc[blue : blue + 4] = b"bXYZ", b"rXYZ"
    Image.fromarray(COLOURS).save(tmp_path / "x.png", icc_profile=bytes(icc))
    found = by_prep(tmp_path / "x.png")
    assert np.abs(found.astype(int) - COLOURS[..., ::-1]).max() <= 2
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), found)
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), found)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparency_is_blended_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """An image at the limit of pixels needs 0.8 GB so, and 1.8 GB at once. The pixels are the same."""
    alpha = COLOURS[..., 0].astype(int)
    image = Image.fromarray(np.dstack([COLOURS, COLOURS[..., 0]]))
    if kind == "LA":
        image = Image.merge("LA", [image.getchannel("G"), image.getchannel("A")])
    elif kind != "RGBA":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
    image.save(tmp_path / "x.png")
    whole = read_image(tmp_path / "x.png")
    parts: list[int] = []

    def recorded(part: Image.Image, profile: bytes, space: str) -> Image.Image:
        parts.append(part.width * part.height)
        return apply_profile(part, profile, space)

    monkeypatch.setattr("relic.pictures.pillow.apply_profile", recorded)
    monkeypatch.setattr("relic.pictures.pillow._PIXELS_AT_ONCE", 3 * image.width)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), whole)
    assert max(parts) <= 3 * image.width
    assert sum(parts) == image.width * image.height
    if kind == "RGBA":
        expected = (COLOURS * alpha[..., None] + 255 * (255 - alpha[..., None])) / 255
        assert np.abs(whole - expected).max() <= 1
