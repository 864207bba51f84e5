"""Colour profiles (ICC.1:2010) to sRGB, by LittleCMS through Pillow's ImageCms."""

import functools
import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    from PIL import ImageCms
except ImportError:  # pillow-simd was built where liblcms2 was missing
    ImageCms = None  # type: ignore[assignment]

Convert = Callable[[Image.Image], Image.Image]

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Pillow's mode for each colour space that a profile can be applied in."""
_UNNOTICED_LEVELS = 2
_HEADER_BYTES, _TAG_BYTES = 132, 12
_MOST_TAGS = 1000


class ProfileError(ValueError):
    """The profile can be read but not applied here. The message says why."""


@functools.lru_cache(maxsize=16)
def conversion_to_srgb(profile: bytes) -> Convert | None:
    """The function that turns an image (mode RGB, L or CMYK, as the profile says) into sRGB.

    None where nothing needs to change: there is no profile, LittleCMS refuses it as damaged (browsers ignore it too),
    or it moves no colour by more than 2 of 255 levels. Raises ProfileError where Pillow has no ImageCms, and for a
    colour space that Pillow has no mode for.
    """
    space = profile_space(profile)
    if not space:
        return None
    if ImageCms is None:
        raise ProfileError(f"{space} colour profile: this Pillow was built without LittleCMS (liblcms2-dev)")
    if space not in _MODES:
        raise ProfileError(f"colour profile for {space} pixels")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        flags = ImageCms.Flags.NOOPTIMIZE if space == "GRAY" else ImageCms.Flags.NONE
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, _MODES[space], "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None

    def convert(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted

    if space in ("RGB", "GRAY") and _changes_nothing(convert, space):
        return None
    return _as_table(convert) if space == "GRAY" else convert


def _as_table(convert: Convert) -> Convert:
    """A conversion of greys as a table of 256 colours.

    LittleCMS's optimized grey transforms are up to 10 levels off in the shadows, and its exact ones are slow.
    """
    ramp = convert(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, -1)))
    tables = [band.tobytes() for band in ramp.split()]

    def look_up(image: Image.Image) -> Image.Image:
        return Image.merge("RGB", [image.point(list(table)) for table in tables])

    return look_up


def profile_space(profile: bytes) -> str:
    """The colour space of the pixels that a profile is for: `RGB`, `GRAY`, `CMYK`, ...; empty for none.

    A profile without its signature, or cut off inside its table of tags, counts as none.
    """
    if len(profile) < _HEADER_BYTES or profile[36:40] != b"acsp":
        return ""
    (count,) = struct.unpack_from(">I", profile, _HEADER_BYTES - 4)
    if count > _MOST_TAGS or len(profile) < _HEADER_BYTES + _TAG_BYTES * count:
        return ""
    return profile[16:20].decode("latin-1").strip()


def _changes_nothing(convert: Convert, space: str) -> bool:
    """Whether all greys, and a grid of 18 levels per channel, move by at most two levels."""
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, -1, 3)
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    colours: npt.NDArray[np.uint8] = greys if space == "GRAY" else np.concatenate([greys, grid], axis=1)
    pixels = colours[..., 0] if space == "GRAY" else colours
    moved = np.abs(np.asarray(convert(Image.fromarray(pixels))).astype(int) - colours)
    return bool(moved.max() <= _UNNOTICED_LEVELS)
