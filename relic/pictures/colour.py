"""Colour profiles to sRGB (ICC.1:2010). Profiles of a matrix and curves are computed here, so they need no library;
profiles of tables (CMYK, most printers and scanners) go through Pillow's ImageCms where Pillow was built with it.
"""

import functools
import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    from PIL import ImageCms
except ImportError:  # pillow-simd built where liblcms2 was missing
    ImageCms = None  # type: ignore[assignment]

Convert = Callable[[Image.Image], Image.Image]

# sRGB's linear light to XYZ under D50 (IEC 61966-2-1, Bradford-adapted).
_SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
_STRIP_PIXELS = 1 << 18
_UNNOTICED_LEVELS = 2


class ProfileError(ValueError):
    """The profile is understood, but cannot be applied here; the message says why."""


class _Profile(NamedTuple):
    space: str
    tags: dict[str, bytes]


@functools.lru_cache(maxsize=16)
def conversion_to_srgb(profile: bytes) -> Convert | None:
    """What turns an image (mode RGB, L or CMYK, as the profile says) into sRGB; None where nothing need change.

    None stands for: no profile, one within 2 of 255 levels of sRGB, or one too broken to read (as browsers do).
    Raises ProfileError for a profile of tables where Pillow has no ImageCms, or one that ImageCms refuses.
    """
    parsed = _parse(profile)
    if parsed is None:
        return None
    try:
        matrix, curves = _matrix_and_curves(parsed)
    except (KeyError, ValueError, struct.error):
        return _table_conversion(profile, parsed.space)
    lookup = _Matrix(matrix, curves)
    return None if lookup.is_identity() else lookup


def profile_space(profile: bytes) -> str:
    """The colour space of the pixels a profile is for: `RGB`, `GRAY`, `CMYK`, ...; empty for none."""
    parsed = _parse(profile)
    return "" if parsed is None else parsed.space


def _parse(profile: bytes) -> _Profile | None:
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 1000 or len(profile) < 132 + 12 * count:
        return None
    tags = {}
    for number in range(count):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        tags[name.decode("latin-1").strip()] = profile[offset : offset + size]
    return _Profile(profile[16:20].decode("latin-1").strip(), tags)


def _matrix_and_curves(profile: _Profile) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Matrix from the pixels' linear light to sRGB's (3 x channels), and each channel's curve (channels x 256)."""
    if "A2B0" in profile.tags:
        raise ValueError("a profile of tables")
    if profile.space == "GRAY":
        columns, curves = [_D50], [_curve(profile.tags["kTRC"])]
    elif profile.space == "RGB":
        columns = [_xyz(profile.tags[f"{channel}XYZ"]) for channel in "rgb"]
        curves = [_curve(profile.tags[f"{channel}TRC"]) for channel in "rgb"]
    else:
        raise ValueError("no matrix for this space")
    return np.linalg.solve(_SRGB_TO_XYZ, np.stack(columns, axis=1)), np.stack(curves)


def _xyz(tag: bytes) -> npt.NDArray[np.float64]:
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> npt.NDArray[np.float64]:
    """Linear light at the 256 code values, from a `curv` or `para` tag (ICC.1:2010 10.5 and 10.15)."""
    x = np.linspace(0, 1, 256)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x
        values = np.array(struct.unpack_from(f">{count}H", tag, 12), dtype=np.float64)
        return x ** (values[0] / 256) if count == 1 else np.interp(x, np.linspace(0, 1, count), values / 65535)
    if tag[:4] != b"para":
        raise ValueError("unknown curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    count = (1, 3, 4, 5, 7)[kind] if kind < 5 else 0
    g, a, b, c, d, e, f = (np.array(struct.unpack_from(f">{count}i", tag, 12)) / 65536).tolist() + [0.0] * (7 - count)
    if kind == 0:
        result: npt.NDArray[np.float64] = x**g
        return result
    if kind < 3:
        c, d, e, f = 0.0, -b / a, c, c
    return np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)


class _Matrix:
    """Curves, a matrix, and sRGB's own curve."""

    def __init__(self, matrix: npt.NDArray[np.float64], curves: npt.NDArray[np.float64]) -> None:
        self._matrix = matrix.astype(np.float32)
        self._curves = curves.astype(np.float32)

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.asarray(image)
        flat = pixels.reshape(-1, len(self._curves))
        out = np.empty((len(flat), 3), np.uint8)
        for start in range(0, len(flat), _STRIP_PIXELS):
            strip = slice(start, start + _STRIP_PIXELS)
            out[strip] = self._convert(flat[strip])
        return Image.fromarray(out.reshape(*pixels.shape[:2], 3))

    def is_identity(self) -> bool:
        """True when greys and a grid of colours move by at most two levels."""
        steps = np.arange(0, 256, 1 if len(self._curves) == 1 else 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(*[steps] * len(self._curves)), axis=-1).reshape(-1, len(self._curves))
        moved = np.abs(self._convert(grid).astype(int) - grid)
        return bool(moved.max() <= _UNNOTICED_LEVELS)

    def _convert(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        linear = np.stack([curve[pixels[:, channel]] for channel, curve in enumerate(self._curves)], axis=1)
        target = np.clip(linear @ self._matrix.T, 0, 1)
        result: npt.NDArray[np.uint8] = _srgb_levels()[(target * 65535 + 0.5).astype(np.uint16)]
        return result


@functools.cache
def _srgb_levels() -> npt.NDArray[np.uint8]:
    """The 8-bit sRGB level of each 16-bit linear one (IEC 61966-2-1)."""
    linear = np.linspace(0, 1, 65536)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels: npt.NDArray[np.uint8] = np.round(encoded * 255).astype(np.uint8)
    return pixels


def _table_conversion(profile: bytes, space: str) -> Convert:
    if ImageCms is None:
        raise ProfileError(f"{space} colour profile of tables: this Pillow was built without LittleCMS (liblcms2-dev)")
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
    if mode is None:
        raise ProfileError(f"colour profile for {space} pixels")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ProfileError(f"colour profile that LittleCMS refuses ({error})") from error

    def convert(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted

    return convert
