"""Cut a window of one of COCO's sizes from a photograph and write it as a JPEG like COCO's."""

import random
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# The most frequent sizes in COCO's train2017, with about the same frequencies.
SIZES = ((640, 480),) * 6 + ((480, 640),) * 3 + ((640, 427),) * 4 + ((427, 640), (500, 375), (640, 640), (612, 612))
_QUALITIES = (90, 92, 95, 96)
_SUBSAMPLINGS = (2, 2, 2, 0)
"""Pillow's numbers: 2 is 4:2:0, 0 is 4:4:4."""


class Cut(NamedTuple):
    """How windows are cut."""

    resample: Image.Resampling
    most_enlarged: float = 1.0
    """The largest enlargement of a window."""
    whole_pixels: bool = True
    """Whether a window starts and ends at whole pixels."""
    mirrored: bool = False
    """Whether half of the windows are mirrored."""


def write_window(photograph: Image.Image, path: Path, rng: random.Random, cut: Cut) -> None:
    """Write a random window of an RGB photograph. Equal states of `rng` give equal files."""
    window = _window(photograph, rng, cut)
    window.save(path, quality=rng.choice(_QUALITIES), subsampling=rng.choice(_SUBSAMPLINGS))


def _window(photograph: Image.Image, rng: random.Random, cut: Cut) -> Image.Image:
    width, height = rng.choice(SIZES)
    largest = min(photograph.width / width, photograph.height / height)
    scale = rng.uniform(min(1 / cut.most_enlarged, largest), largest)
    w, h = width * scale, height * scale
    if cut.whole_pixels:
        w, h = int(w), int(h)
        left, top = (float(rng.randint(0, room)) for room in (photograph.width - w, photograph.height - h))
    else:
        left, top = rng.uniform(0, photograph.width - w), rng.uniform(0, photograph.height - h)
    window = photograph.resize((width, height), cut.resample, box=(left, top, left + w, top + h))
    if cut.mirrored and rng.random() < 0.5:
        return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return window
