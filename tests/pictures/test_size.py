"""The size of an image, read without its pixels."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from relic.pictures.decoding import read_header, read_size
from relic.pictures.reasons import Unreadable


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_size_is_that_of_the_decoded_image(kind: str, orientation: int) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    pixels = np.random.default_rng(0).integers(0, 256, (17, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {} if kind in ("GIF", "BMP") else {"exif": exif.tobytes()}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    data = buffer.getvalue()
    assert read_size(data) == read_header(data).full
    turned = orientation in (6, 8) and kind not in ("GIF", "BMP")
    assert read_size(data) == ((17, 40) if turned else (40, 17))


def test_a_damaged_file_is_unreadable() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 17)).save(buffer, "PNG")
    for data in (b"", b"text", buffer.getvalue()[:20]):
        with pytest.raises(Unreadable):
            read_size(data)
