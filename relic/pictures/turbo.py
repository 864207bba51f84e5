"""JPEG pixels by libjpeg-turbo. A file of its own, since devices that code images may lack simplejpeg."""

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters", "JFIF revision", "Adobe color transform")


def decode_jpeg(data: bytes | memoryview, colorspace: str, memory: Pixels | None = None, **reduce: int) -> Pixels:
    """The pixels (H, W, channels), in `memory` where it is given; `reduce` is simplejpeg's least size.

    Raises ValueError for corrupt or missing data. Oddities that touch no pixel are no error.
    """
    try:
        result: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True, buffer=memory, **reduce)
        return result
    except ValueError as error:
        if not any(oddity in str(error) for oddity in _HARMLESS):
            raise
    found: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=False, buffer=memory, **reduce)
    return found
