"""Why an image cannot be read: one line, the same in every run."""

import re

from relic.pictures.colour import ProfileError

MAX_PIXELS = 89_478_485
"""Pillow's default limit against decompression bombs: 256 MiB of RGB."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Memory addresses in some of Pillow's messages. They differ from run to run, so they are removed."""

_TOO_SHORT = "unpack_from requires a buffer"
"""The words of Python's struct. Pillow passes them on."""


class Unreadable(Exception):
    """The file cannot be decoded. The message is the reason, in one line."""


def unreadable(error: Exception, what: str = "") -> Unreadable:
    """Turn a decoder's error into one line that is the same in every run. `what` goes before it: the kind of file."""
    if isinstance(error, (Unreadable, ProfileError)):
        return Unreadable(str(error))
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    if _TOO_SHORT in text:
        text = "it ends too early, or a length in it is wrong"
    elif not isinstance(error, (OSError, ValueError, SyntaxError)) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Unreadable(f"{what}: {text}" if what else text)


def check_image_size(width: int, height: int) -> None:
    """Raise Unreadable for an image without pixels or with more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise Unreadable(f"no pixels: its header says {width}x{height}")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"decompression bomb: {width}x{height} pixels, more than {MAX_PIXELS:,}")
