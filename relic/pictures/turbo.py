"""Decode JPEGs with libjpeg-turbo. A separate file, because a device with export/codec.py may not have simplejpeg."""

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters", "JFIF revision", "Adobe color transform")


def decode_jpeg(data: bytes | memoryview, colorspace: str, memory: Pixels | None = None, **reduce: int) -> Pixels:
    """Decode to uint8 (H, W, channels), in `memory` if it is given. `reduce`: simplejpeg's `min_*` arguments.

    Raises ValueError for corrupt or missing data. Warnings that affect no pixel are ignored.
    """
    try:
        result: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True, buffer=memory, **reduce)
        return result
    except ValueError as error:
        if not any(oddity in str(error) for oddity in _HARMLESS):
            raise
    found: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=False, buffer=memory, **reduce)
    return found
