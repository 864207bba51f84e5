"""Encode a crop to the bytes of a sample, and name the library versions that decide these bytes."""

import numpy as np
import PIL
import simplejpeg
from isal import __version__ as isal_version
from PIL import Image, features

from relic.options import Encoding
from relic.pictures.crop_png import encode_crop_png
from relic.shards.npy import npy_header

RULES_VERSION = "4"
"""Increase it when a change to listing, decoding, cropping, encoding or the tars changes any byte of a shard."""


def encode_crop(crop: Image.Image, encoding: Encoding, jpeg_quality: int) -> bytes:
    """Encode a crop in mode RGB or RGBX. JPEG keeps colour at full resolution (4:4:4)."""
    if encoding == "jpg":
        pixels = np.asarray(crop)
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels, quality=jpeg_quality, colorspace=crop.mode, colorsubsampling="444"
        )
        return encoded
    rgb = crop.tobytes("raw", "RGB")
    if encoding == "png":
        return encode_crop_png(np.frombuffer(rgb, np.uint8).reshape(crop.height, crop.width, 3))
    return npy_header(crop.height, crop.width) + rgb


def imaging_libraries(encoding: Encoding) -> dict[str, str]:
    """Versions of everything that decides a sample's bytes. A folder packed with other versions is not continued."""
    versions = {"relic.prep": RULES_VERSION, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}
    for name in ("jpg", "zlib", "libtiff", "webp", "littlecms2"):
        versions[f"pillow.{name}"] = features.version(name) or "missing"
    if encoding == "png":
        versions["isal"] = isal_version
    return versions
