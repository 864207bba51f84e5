"""Curves to compare with: JPEG and WebP of the same images, and CompressAI's published points.

JPEG and WebP: Pillow's encoders, whole files, the same metrics. Published: what CompressAI gives for
`bmshj2018-factorized` (metric mse), quality 1 to 8, on Kodak's 24 images. Facts from
github.com/InterDigitalInc/CompressAI, results/image/8bit-decoded/kodak/
compressai-bmshj2018-factorized_mse_ans_cuda.json at commit 128f003: means of per-image values on pixels rounded to 8
bits, rates of the coded strings. Qualities 1 to 5 have N=128, M=192; 6 to 8 have N=192, M=320.
"""

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
from evaluate.sources import ImageSource, Picture, numbers_of_rank
from evaluate.summary import mean_of
from relic.codec.metrics import ms_ssim_8bit, psnr_db
from relic.codec.pixels import to_float
from relic.distributed import World, gather_to_all

AUTO_LIMIT = 200
"""Images up to which --references auto draws the curves: scoring them takes as long as judging a dozen codecs."""

_QUALITIES = {"JPEG": (5, 10, 20, 35, 50, 65, 80, 90), "WEBP": (1, 10, 25, 45, 65, 80, 90, 95)}
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WEBP": {"method": 4}}
_NAMES = {"JPEG": "JPEG (4:2:0, optimised tables)", "WEBP": "WebP"}

PUBLISHED_SOURCE = "CompressAI's results/image/8bit-decoded/kodak/compressai-bmshj2018-factorized_mse_ans_cuda.json"

_PUBLISHED_BPP = (0.122623, 0.188527, 0.287808, 0.440379, 0.648136, 0.966977, 1.351166, 1.833266)
_PUBLISHED_PSNR_DB = (26.9057, 28.2137, 29.6110, 31.2685, 32.9436, 35.3597, 37.3647, 39.5686)
_PUBLISHED_MS_SSIM = (0.909904, 0.935963, 0.955386, 0.970271, 0.980555, 0.987794, 0.992117, 0.995023)

PUBLISHED = Curve(
    "CompressAI bmshj2018-factorized, published",
    "published",
    tuple(
        Point(f"quality {quality}", *values)
        for quality, values in enumerate(
            zip(_PUBLISHED_BPP, _PUBLISHED_PSNR_DB, _PUBLISHED_MS_SSIM, strict=True), start=1
        )
    ),
)


class _Score(NamedTuple):
    bpp: float
    psnr_db: float
    ms_ssim: float | None


def reference_curves(source: ImageSource, world: World, *, workers: int) -> list[Curve]:
    """A curve for JPEG, and for WebP where Pillow has it, as means over all images of all ranks; on the CPU.

    Sides over 16,383 pixels are beyond WebP: such images leave its curve out.
    """
    formats = [name for name in _QUALITIES if name == "JPEG" or features.check("webp")]
    pictures = source.pictures(numbers_of_rank(source, world))
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
