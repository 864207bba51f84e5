"""What JPEG and WebP make of the same images: Pillow's encoders, whole files, the same metrics."""

import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from evaluate.curves import Curve, Point, by_rate
from evaluate.parallel import map_pictures
from evaluate.sources import ImageSource, Picture, share
from evaluate.summary import mean_of
from relic.codec.metrics import ms_ssim_8bit, psnr_db
from relic.codec.pixels import to_float
from relic.distributed import World, gather_to_all

AUTO_LIMIT = 200
"""Images up to which --references auto draws the curves: scoring them takes as long as judging a dozen codecs."""

_QUALITIES = {"JPEG": (5, 10, 20, 35, 50, 65, 80, 90), "WEBP": (1, 10, 25, 45, 65, 80, 90, 95)}
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WEBP": {"method": 4}}
_NAMES = {"JPEG": "JPEG (4:2:0, optimised tables)", "WEBP": "WebP"}


class _Score(NamedTuple):
    bpp: float
    psnr_db: float
    ms_ssim: float | None


def reference_curves(source: ImageSource, world: World, *, workers: int) -> list[Curve]:
    """A curve for JPEG, and for WebP where Pillow has it, as means over all images of all ranks; on the CPU.

    Sides over 16,383 pixels are beyond WebP: such images leave its curve out.
    """
    formats = [name for name in _QUALITIES if name == "JPEG" or features.check("webp")]
    pictures = source.pictures(share(source, world))
    scores = list(map_pictures(lambda picture: _score_all(picture, formats), pictures, workers))
    every = [score for part in gather_to_all(scores, world) for score in part]
    curves = []
    for name in formats:
        points = []
        for quality in _QUALITIES[name]:
            found = [scores[name, quality] for scores in every if (name, quality) in scores]
            if len(found) == len(every):
                points.append(_mean_point(f"quality {quality}", found))
        if points:
            curves.append(Curve(_NAMES[name], "reference", by_rate(points)))
    return curves


@torch.inference_mode()
def _score_all(picture: Picture, formats: list[str]) -> dict[tuple[str, int], _Score]:
    pixels = picture.image_BHWC
    image, x_BCHW = Image.fromarray(pixels[0].numpy()), to_float(pixels)
    scores = {}
    for name, quality, coded in _encodings(image, formats):
        with Image.open(io.BytesIO(coded)) as decoded:
            x_hat_BCHW = to_float(torch.from_numpy(np.array(decoded.convert("RGB")))[None])
        scores[name, quality] = _score(x_BCHW, x_hat_BCHW, len(coded))
    return scores


def _encodings(image: Image.Image, formats: list[str]) -> Iterator[tuple[str, int, bytes]]:
    for name in formats:
        if name == "WEBP" and max(image.size) > 16383:
            continue
        for quality in _QUALITIES[name]:
            buffer = io.BytesIO()
            image.save(buffer, name, quality=quality, **_OPTIONS[name])
            yield name, quality, buffer.getvalue()


def _score(x_BCHW: Tensor, x_hat_BCHW: Tensor, num_bytes: int) -> _Score:
    similarity = ms_ssim_8bit(x_BCHW, x_hat_BCHW).item()
    return _Score(
        bpp=8 * num_bytes / (x_BCHW.size(2) * x_BCHW.size(3)),
        psnr_db=psnr_db(x_BCHW, x_hat_BCHW).item(),
        ms_ssim=None if math.isnan(similarity) else similarity,
    )


def _mean_point(name: str, scores: list[_Score]) -> Point:
    bpp = mean_of(score.bpp for score in scores)
    assert bpp is not None
    psnr = mean_of(score.psnr_db for score in scores if math.isfinite(score.psnr_db))
    return Point(name, bpp, psnr, mean_of(score.ms_ssim for score in scores))
