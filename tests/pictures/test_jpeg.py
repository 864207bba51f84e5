"""The first frame header of a JPEG, compared with Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from relic.pictures import jpeg
from relic.pictures.jpeg import find_frame
from tests.pictures.odd_files import save, segment

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 57, 3), dtype=np.uint8))
FALSE_FRAME = b"\xff\xc0\0\x11\x08\0\x07\0\x05\3" + bytes(9)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("before", [b"", segment(0xFE, FALSE_FRAME), segment(0xE1, bytes(3000)), FALSE_FRAME[:1]])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_frame_is_that_of_pillow(progressive: bool, before: bytes, mode: str) -> None:
    """Also after a comment that holds the bytes of another frame, and after more than what is looked through first."""
    plain = save("JPEG", NOISE.convert(mode), progressive=progressive)
    with Image.open(io.BytesIO(plain)) as image:
        size, components, told = image.size, len(image.getbands()), "progressive" in image.info
    whole = plain[:2] + before + plain[2:]
    for data in (whole, memoryview(whole)):
        frame = find_frame(data)
        assert frame is not None
        assert ((frame.width, frame.height), frame.components, frame.progressive) == (size, components, told)
    assert find_frame(whole[:12]) is None


def test_a_header_that_was_seen_before_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = [
        save("JPEG", NOISE.transpose(how), quality=91)
        for how in (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT)
    ]
    first = find_frame(memoryview(crops[0]))
    monkeypatch.setattr(jpeg, "_markers", lambda data: pytest.fail("read again"))
    assert find_frame(memoryview(crops[1])) == first
