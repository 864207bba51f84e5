"""The bytes of a sample, and the versions that decide them."""

import io
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep.encoding import encode_crop, imaging_libraries
from prep.split_folder import SplitFolder
from relic.errors import InputError
from relic.options import Encoding
from tests.conftest import a_packing, photograph


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_lossless_encodings_keep_every_pixel(encoding: Encoding) -> None:
    pixels = photograph(48, 32, seed=1)
    crop = Image.fromarray(pixels)
    payload = encode_crop(crop, encoding, 95)
    found = np.load(io.BytesIO(payload)) if encoding == "raw" else np.asarray(Image.open(io.BytesIO(payload)))
    np.testing.assert_array_equal(found, pixels)
    assert encode_crop(crop.convert("RGBX"), encoding, 95) == payload


def test_a_png_set_that_another_writer_began_is_not_continued(tmp_path: Path) -> None:
    """Pillow wrote the PNGs of sets that know no isal. Its version decides nothing else: other sets go on."""
    assert imaging_libraries("png")["isal"] == version("isal")
    before = {name: found for name, found in imaging_libraries("png").items() if name != "isal"}
    encoding: Encoding
    for encoding in ("png", "raw", "jpg"):
        folder = SplitFolder(tmp_path / encoding, "train")
        folder.folder.mkdir()
        folder.begin(a_packing(encoding=encoding, libraries=before))
        folder.tar(0).touch()
        now = a_packing(encoding=encoding, libraries=imaging_libraries(encoding))
        if encoding == "png":
            with pytest.raises(
                InputError, match=rf"packed differently \(library isal: none -> {version('isal')}\); way out"
            ):
                folder.check(now, way_out="way out")
        else:
            folder.check(now, way_out="way out")
