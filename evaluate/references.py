"""Curves of JPEG and WebP on the same images: Pillow's encoders, whole files, the same metrics."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from evaluate.curves import Curve, Point, by_rate
from evaluate.parallel import map_images
from evaluate.sources import ImageSource, SourceImage, numbers_of_rank
from relic.codec.metrics import score_coded
from relic.codec.pixels import to_float
from relic.codec.scores import Score, mean_score
from relic.distributed import World, gather_to_all
from relic.errors import naming

log = logging.getLogger(__name__)

AUTO_LIMIT = 200
"""--references auto draws the curves for up to so many images: they take as long as evaluating twelve codecs."""

_QUALITIES = {"JPEG": (5, 10, 20, 35, 50, 65, 80, 90), "WEBP": (1, 10, 25, 45, 65, 80, 90, 95)}
_MOST_PIXELS = {"JPEG": 65500, "WEBP": 16383}
"""The longest side that libjpeg and libwebp encode."""
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WEBP": {"method": 4}}
_NAMES = {"JPEG": "JPEG (4:2:0, optimised tables)", "WEBP": "WebP"}


def reference_curves(source: ImageSource, world: World, *, workers: int) -> list[Curve]:
    """A curve for JPEG, and for WebP where Pillow has it, as means over all images of all ranks; on the CPU.

    If any image has a side over the limit of a format, the curve of that format is left out.
    """
    formats = [name for name in _QUALITIES if name == "JPEG" or features.check("webp")]
    images = source.read(numbers_of_rank(source, world))
    scores = list(map_images(lambda image: _score_all(image, formats), images, workers))
    every = [score for part in gather_to_all(scores, world) for score in part]
    curves = []
    for name in formats:
        points = []
        for quality in _QUALITIES[name]:
            found = [scores[name, quality] for scores in every if (name, quality) in scores]
            if len(found) == len(every):
                mean = mean_score(found)
                points.append(Point(f"quality {quality}", mean.bpp_real, mean.psnr_db, mean.ms_ssim))
        if points:
            curves.append(Curve(_NAMES[name], "reference", by_rate(points)))
        elif world.is_main:
            log.warning("no curve of %s: an image has a side over %d pixels", name, _MOST_PIXELS[name])
    return curves


@torch.inference_mode()
def _score_all(image: SourceImage, formats: list[str]) -> dict[tuple[str, int], Score]:
    x_BCHW = to_float(image.pixels_BHWC)
    scores = {}
    with naming(image.name):
        for name, quality, coded in _encodings(Image.fromarray(image.pixels_BHWC[0].numpy()), formats):
            with Image.open(io.BytesIO(coded)) as decoded:
                x_hat_BCHW = to_float(torch.from_numpy(np.array(decoded.convert("RGB")))[None])
            scores[name, quality] = score_coded(x_BCHW, x_hat_BCHW, len(coded))
    return scores


def _encodings(image: Image.Image, formats: list[str]) -> Iterator[tuple[str, int, bytes]]:
    for name in formats:
        if max(image.size) > _MOST_PIXELS[name]:
            continue
        for quality in _QUALITIES[name]:
            buffer = io.BytesIO()
            image.save(buffer, name, quality=quality, **_OPTIONS[name])
            yield name, quality, buffer.getvalue()
