from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from prep.cropping import Window, centre_window, cut, largest_window, least_decode_size, random_window
from relic.pictures.decoding import Size

sizes = st.builds(Size, st.integers(1, 900), st.integers(1, 900))


@given(sizes, sizes)
def test_the_window_is_the_largest_of_its_shape(image: Size, shape: Size) -> None:
    width, height = largest_window(image, shape)
    assert 1 <= width <= image.width
    assert 1 <= height <= image.height
    assert width == image.width or height == image.height
    scale = min(image.width / shape.width, image.height / shape.height)  # the real-valued answer
    assert abs(width - shape.width * scale) <= 1
    assert abs(height - shape.height * scale) <= 1


@pytest.mark.parametrize(
    ("image", "shape", "box"),
    [
        ((640, 480), (224, 224), (80, 0, 560, 480)),
        ((427, 640), (224, 224), (0, 106, 427, 533)),
        ((640, 480), (448, 224), (0, 80, 640, 400)),
        ((1, 500), (224, 224), (0, 249, 1, 250)),
        ((1, 1), (300, 100), (0, 0, 1, 1)),
    ],
)
def test_centre_windows(image: tuple[int, int], shape: tuple[int, int], box: tuple[int, ...]) -> None:
    assert centre_window(Size(*image), Size(*shape)) == box


@given(sizes, sizes, st.integers(0, 2**40), st.integers(0, 5))
def test_random_windows_lie_inside(image: Size, shape: Size, seed: int, number: int) -> None:
    window = random_window(image, shape, seed=seed, key="k", crop_number=number)
    assert 0 <= window.left < window.right <= image.width
    assert 0 <= window.top < window.bottom <= image.height
    largest = largest_window(image, shape)
    assert window.size.width >= min(largest.width, shape.width) - 1
    assert window == random_window(image, shape, seed=seed, key="k", crop_number=number)


def test_random_windows_cover_the_image_evenly() -> None:
    windows = [random_window(Size(640, 480), Size(64, 64), seed=1, key=str(n), crop_number=0) for n in range(4000)]
    scales = np.array([window.size.width / 480 for window in windows])
    assert scales.min() < 0.51
    assert scales.max() > 0.99
    assert abs(scales.mean() - 0.75) < 0.01
    room = np.array([640 - window.size.width for window in windows])
    places = np.array([window.left for window in windows]) / room
    assert abs(places.mean() - 0.5) < 0.02
    assert abs(places.var() - 1 / 12) < 0.005
    others = [random_window(Size(640, 480), Size(64, 64), seed=2, key=str(n), crop_number=0) for n in range(50)]
    assert others != windows[:50]


def test_cutting_comes_before_resizing(make_photograph: Callable[[int, int, int], NDArray[np.uint8]]) -> None:
    pixels = make_photograph(90, 60, 3)
    window = Window(15, 0, 75, 60)
    expected = Image.fromarray(np.ascontiguousarray(pixels[0:60, 15:75])).resize((20, 20), Image.Resampling.BICUBIC)
    found = cut(Image.fromarray(pixels), Size(90, 60), window, Size(20, 20))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("window", [Window(15, 0, 75, 60), Window(0, 0, 90, 60), Window(80, 50, 90, 60), (0, 0, 1, 1)])
def test_a_window_looked_at_in_memory_is_the_one_copied(
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]], window: tuple[int, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 4), dtype=np.uint8)
    image = Image.frombytes("RGBX", (90, 60), pixels[:60].tobytes())
    for shape in (Size(20, 20), Size(*Window(*window).size), Size(130, 70)):
        copied = cut(image, Size(90, 60), Window(*window), shape)
        found = cut(image, Size(90, 60), Window(*window), shape, pixels)
        assert found.mode == "RGBX"
        np.testing.assert_array_equal(np.asarray(found)[..., :3], np.asarray(copied)[..., :3])


def test_a_window_of_the_crop_s_size_is_copied(make_photograph: Callable[[int, int, int], NDArray[np.uint8]]) -> None:
    pixels = make_photograph(30, 20, 4)
    found = cut(Image.fromarray(pixels), Size(30, 20), Window(5, 0, 25, 20), Size(20, 20))
    np.testing.assert_array_equal(np.asarray(found), pixels[:, 5:25])


@given(sizes, sizes)
def test_the_least_decode_size_still_covers_the_crop(image: Size, shape: Size) -> None:
    window = centre_window(image, shape)
    least = least_decode_size(image, [window], shape)
    assert least.width <= image.width
    assert least.height <= image.height
    covers = window.size.width * least.width >= min(shape.width, window.size.width) * image.width
    assert covers or least.width == image.width
