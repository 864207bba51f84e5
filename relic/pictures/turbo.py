"""Decode JPEGs with libjpeg-turbo, and tell which of its warnings are damage."""

import io
import re

import numpy as np
from PIL import Image, JpegImagePlugin

from relic.arrays import Pixels
from relic.pictures.jpeg import check_scans, find_frame, plain_jpeg

try:
    import simplejpeg
except ImportError:  # a device that only runs export/codec.py: Pillow decodes there, and says nothing of damage
    simplejpeg = None

_UNNAMED_SAMPLING = "Could not determine subsampling level"
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


def decode_jpeg(data: bytes | memoryview, colorspace: str, memory: Pixels | None = None, **reduce: int) -> Pixels:
    """Decode to uint8 (H, W, channels), in `memory` if it is given. `reduce`: simplejpeg's `min_*` arguments.

    Raises ValueError for corrupt or missing data. Oddities that affect no pixel are ignored. Sampling factors that
    TurboJPEG has no name for are decoded by Pillow, at full size.
    """
    frame = find_frame(data)
    if frame is not None and frame.progressive:
        check_scans(bytes(data))
    if frame is not None and frame.lossless:
        reduce = {}
    if simplejpeg is None:
        return _by_pillow(plain_jpeg(bytes(data)), colorspace, memory)
    try:
        result: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True, buffer=memory, **reduce)
        return result
    except ValueError:
        data = plain_jpeg(bytes(data))
    strict = True
    while True:
        try:
            found: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=strict, buffer=memory, **reduce)
        except ValueError as error:
            if _UNNAMED_SAMPLING in str(error):
                return _by_pillow(data, colorspace, memory)
            if not strict or not _harmless(str(error), data):
                raise
        else:
            return found
        check_scans(data)
        strict = False


def _harmless(warning: str, data: bytes) -> bool:
    """Whether libjpeg's warning is of something that no pixel depends on.

    Bytes before a restart marker may be the rest of damaged pixels. They are padding if they are all zeros.
    """
    if found := _EXTRANEOUS.search(warning):
        marker = int(found[2], 16)
        return marker not in range(0xD0, 0xD8) or bytes(int(found[1])) + bytes([0xFF, marker]) in data
    return "Invalid SOS parameters" in warning


def _by_pillow(data: bytes, colorspace: str, memory: Pixels | None) -> Pixels:
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        channels = len(colorspace)
        if memory is not None and memory.size < image.width * image.height * channels:
            raise ValueError(f"{image.width}x{image.height} pixels do not fit")
        found: Pixels = np.asarray(image.convert("RGB") if colorspace != "CMYK" else image)
    if colorspace == "RGBX":
        found = np.asarray(Image.fromarray(found).convert("RGBX"))
    if memory is None:
        return found
    pixels: Pixels = memory.reshape(-1)[: found.size].reshape(found.shape)
    pixels[:] = found
    return pixels
