"""Encode a crop to the bytes of a sample, and name the library versions that decide these bytes."""

import io

import numpy as np
import PIL
import simplejpeg
from PIL import Image, features

from relic.options import Encoding
from relic.shards.npy import npy_header

RULES_VERSION = "3"
"""Increase it when a change to listing, decoding, cropping or encoding changes any pixel or key."""
_PNG_LEVEL = 2


def encode_crop(crop: Image.Image, encoding: Encoding, jpeg_quality: int) -> bytes:
    """Encode a crop in mode RGB or RGBX. JPEG keeps colour at full resolution (4:4:4)."""
    if encoding == "png":
        buffer = io.BytesIO()
        crop.convert("RGB").save(buffer, "PNG", compress_level=_PNG_LEVEL)
        return buffer.getvalue()
    if encoding == "jpg":
        pixels = np.asarray(crop)
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels, quality=jpeg_quality, colorspace=crop.mode, colorsubsampling="444"
        )
        return encoded
    return npy_header(crop.height, crop.width) + crop.tobytes("raw", "RGB")


def imaging_libraries() -> dict[str, str]:
    """Versions of everything that decides the pixels. A folder packed with other versions is not continued."""
    versions = {"relic.prep": RULES_VERSION, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}
    for name in ("jpg", "zlib", "libtiff", "webp", "littlecms2"):
        versions[f"pillow.{name}"] = features.version(name) or "missing"
    return versions
