from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.folder import read_image
from relic.errors import InputError
from relic.pictures.listing import list_images


def test_images_are_found_in_all_folders_and_sorted(folder: Path) -> None:
    assert list_images(folder) == ["a.png", "b.PNG", "d.bmp", "more/c.png"]


def test_pixels_are_what_was_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for ending in ("png", "bmp", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"x.{ending}")
        np.testing.assert_array_equal(read_image(tmp_path / f"x.{ending}"), pixels)
    Image.fromarray(pixels).save(tmp_path / "x.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "x.webp"), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), pixels[..., :1].repeat(3, axis=2))


def test_exif_turns_an_image_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(pixels, -1))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    for name in ("bad.png", "float.tif"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)
