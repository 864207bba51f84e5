"""Colour profiles written byte by byte here, against the formulas of their colour spaces and against LittleCMS."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from relic.pictures import colour
from relic.pictures.colour import conversion_to_srgb, profile_space
from relic.pictures.decoding import decode, read_header
from relic.pictures.reasons import Unreadable

D50 = (0.9642, 1.0, 0.8249)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65_XY = (0.3127, 0.329)
PRIMARIES = {
    "srgb": ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)),
    "p3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "adobe": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}


def xyz(x: float, y: float) -> NDArray[Any]:
    return np.array([x / y, 1, (1 - x - y) / y])


def rgb_to_xyz(name: str) -> NDArray[Any]:
    """The matrix of a D65 space from its chromaticities."""
    primaries = np.stack([xyz(*xy) for xy in PRIMARIES[name]], axis=1)
    result: NDArray[Any] = primaries * np.linalg.solve(primaries, xyz(*D65_XY))
    return result


def adapted(matrix: NDArray[Any]) -> NDArray[Any]:
    gains = (BRADFORD @ D50) / (BRADFORD @ xyz(*D65_XY))
    result: NDArray[Any] = np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD @ matrix
    return result


def s15(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *[round(value * 65536) for value in values])


def para(kind: int, *values: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + s15(*values)


def curv(*values: int) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


SRGB_CURVE = para(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    body, table = b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    size = 132 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ", bytes(12), b"acsp")
    return (header + bytes(28) + s15(*D50)).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def matrix_profile(name: str, curve: bytes) -> bytes:
    columns = adapted(rgb_to_xyz(name)).T
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(*D50)}
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + s15(*column)
        tags[letter + b"TRC"] = curve
    return profile(b"RGB ", tags)


def srgb_encode(linear: NDArray[Any]) -> NDArray[Any]:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def srgb_decode(levels: NDArray[Any]) -> NDArray[Any]:
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


PIXELS = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
WIDE = {
    "p3": (matrix_profile("p3", SRGB_CURVE), srgb_decode),
    "adobe": (matrix_profile("adobe", curv(round(2.19921875 * 256))), lambda levels: (levels / 255) ** 2.19921875),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_spaces_against_their_formulas(name: str) -> None:
    icc, decode_curve = WIDE[name]
    convert = conversion_to_srgb(icc)
    assert convert is not None
    to_srgb = np.linalg.inv(rgb_to_xyz("srgb")) @ rgb_to_xyz(name)  # both D65: no adaptation
    expected = srgb_encode(decode_curve(PIXELS.astype(float)) @ to_srgb.T)
    assert np.abs(np.asarray(convert(Image.fromarray(PIXELS))) - expected).max() < 1.5


@pytest.mark.parametrize("name", WIDE)
def test_wide_spaces_against_littlecms(name: str) -> None:
    cms = pytest.importorskip("PIL.ImageCms")
    icc, _ = WIDE[name]
    expected = cms.profileToProfile(
        Image.fromarray(PIXELS), cms.ImageCmsProfile(io.BytesIO(icc)), cms.createProfile("sRGB")
    )
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", icc_profile=icc)
    found = np.asarray(decode(read_header(buffer.getvalue())).image).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize(
    "curve", [SRGB_CURVE, curv(*[round(65535 * float(srgb_decode(np.array(255 * i / 1023)))) for i in range(1024)])]
)
def test_srgb_profiles_change_nothing(curve: bytes) -> None:
    assert conversion_to_srgb(matrix_profile("srgb", curve)) is None


def test_the_srgb_profile_of_littlecms_changes_nothing() -> None:
    cms = pytest.importorskip("PIL.ImageCms")
    assert conversion_to_srgb(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()) is None


def test_a_jpeg_with_a_profile_is_converted() -> None:
    flat = np.broadcast_to(np.array([200, 40, 90], np.uint8), (16, 16, 3))
    buffer = io.BytesIO()
    icc = WIDE["p3"][0]
    Image.fromarray(flat.copy()).save(buffer, "JPEG", quality=100, subsampling=0, icc_profile=icc)
    convert = conversion_to_srgb(icc)
    assert convert is not None
    expected = np.asarray(convert(Image.fromarray(flat.copy()))).astype(int)
    assert np.abs(np.asarray(decode(read_header(buffer.getvalue())).image) - expected).max() <= 3
    assert np.abs(expected - flat).max() > 10


def test_grey_profiles_against_their_formula() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    icc = profile(b"GRAY", {b"wtpt": b"XYZ \0\0\0\0" + s15(*D50), b"kTRC": curv()})
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, kind, icc_profile=icc)
        expected = srgb_encode(grey / 255)
        found = np.asarray(decode(read_header(buffer.getvalue())).image)
        assert np.abs(found - expected[..., None]).max() < 1.5


def test_a_grey_profile_whose_curve_gives_lightness() -> None:
    """Under the connection space Lab a grey curve leads to L*, not to Y (ICC.1:2010 F.2)."""
    linear = bytearray(profile(b"GRAY", {b"wtpt": b"XYZ \0\0\0\0" + s15(*D50), b"kTRC": curv()}))
    linear[20:24] = b"Lab "
    convert = conversion_to_srgb(bytes(linear))
    assert convert is not None
    lightness = np.arange(256) / 2.55
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness * 27 / 24389)
    found = np.asarray(convert(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, -1))))[0]
    assert np.abs(found - srgb_encode(luminance)[:, None]).max() < 1.5


@pytest.mark.parametrize(
    ("kind", "values"),
    [(0, (1.8,)), (1, (2.0, 1.1, -0.1)), (2, (2.0, 1.05, -0.05, 0.0)), (4, (2.4, 0.9, 0.05, 0.1, 0.05, 0.02, 0.0))],
)
def test_parametric_curves_against_littlecms(kind: int, values: tuple[float, ...]) -> None:
    cms = pytest.importorskip("PIL.ImageCms")
    icc = matrix_profile("p3", para(kind, *values))
    expected = cms.profileToProfile(
        Image.fromarray(PIXELS), cms.ImageCmsProfile(io.BytesIO(icc)), cms.createProfile("sRGB")
    )
    convert = conversion_to_srgb(icc)
    assert convert is not None
    assert np.abs(np.asarray(convert(Image.fromarray(PIXELS))).astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("broken", [b"", b"x" * 200, WIDE["p3"][0][:140], WIDE["p3"][0][:100]])
def test_a_broken_profile_is_as_none(broken: bytes) -> None:
    assert conversion_to_srgb(broken) is None
    assert profile_space(broken) == ""


def table_profile() -> bytes:
    return profile(b"CMYK", {b"wtpt": b"XYZ \0\0\0\0" + s15(*D50), b"A2B0": b"mft1" + bytes(100)})


def test_without_littlecms_a_profile_is_a_rejection_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour, "ImageCms", None)
    conversion_to_srgb.cache_clear()
    for space, icc in (("CMYK", table_profile()), ("RGB", WIDE["p3"][0])):
        buffer = io.BytesIO()
        Image.new(space, (8, 8)).save(buffer, "JPEG", icc_profile=icc)
        with pytest.raises(Unreadable, match=f"{space} colour profile.*liblcms2"):
            decode(read_header(buffer.getvalue()))
    conversion_to_srgb.cache_clear()


@pytest.mark.parametrize("space", ["CMYK", "RGB", "L"])
def test_a_profile_that_littlecms_refuses_is_as_none(space: str) -> None:
    pytest.importorskip("PIL.ImageCms")
    broken = bytearray(table_profile())
    broken[16:20] = {"RGB": b"RGB ", "L": b"GRAY"}.get(space, b"CMYK")
    assert profile_space(bytes(broken))
    image = Image.fromarray(PIXELS).convert(space)
    buffers = io.BytesIO(), io.BytesIO()
    image.save(buffers[0], "JPEG", icc_profile=bytes(broken))
    image.save(buffers[1], "JPEG")
    found, plain = (np.asarray(decode(read_header(buffer.getvalue())).image.convert("RGB")) for buffer in buffers)
    np.testing.assert_array_equal(found, plain)
