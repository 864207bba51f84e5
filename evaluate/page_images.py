"""The images of report.html: which ones, and their reconstructions by each codec, as data URIs."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, features
from torch import Tensor

from evaluate.evaluator import Scorer, exact_arithmetic
from evaluate.report import ShownImage, Version
from evaluate.results import Evaluation
from evaluate.sources import ImageSource
from relic.codec.pixels import to_uint8

_MAX_SIDE = 1280
"""Of larger images only the centre is shown. Whole ones would make the page too large; scaling would hide errors."""


def worst_and_best(evaluation: Evaluation, count: int) -> dict[int, str]:
    """Number in the source -> rank, for the `count` worst and `count` best images by PSNR. No image is in both."""
    num_images = len(evaluation.results)
    order = sorted(range(num_images), key=lambda number: evaluation.results[number].psnr_db)
    worst = {number: f"worst {place}" for place, number in enumerate(order[:count], start=1)}
    best = order[max(count, num_images - count) :][::-1]
    return worst | {number: f"best {place}" for place, number in enumerate(best, start=1)}


def shown_images(evaluations: Sequence[Evaluation], source: ImageSource, count: int) -> list[ShownImage]:
    """The first codec's worst and best images, reconstructed with each codec.

    They are read and coded again: which ones they are is known only at the end, and keeping all would fill the memory.
    """
    chosen = worst_and_best(evaluations[0], count)
    scorers = [Scorer(evaluation.codec, None) for evaluation in evaluations]
    shown = []
    with exact_arithmetic():
        for image in source.read(list(chosen)):
            height, width = image.pixels_BHWC.shape[1:3]
            box = _centre(width, height)
            versions = [
                Version(
                    evaluation.codec.label,
                    _data_uri(to_uint8(score(image).x_hat_BCHW).cpu(), box),
                    evaluation.results[image.number],
                )
                for evaluation, score in zip(evaluations, scorers, strict=True)
            ]
            left, top, right, bottom = box
            size = right - left, bottom - top
            cut = "" if size == (width, height) else f"The centre {size[0]}x{size[1]} of {width}x{height} pixels."
            original = _data_uri(image.pixels_BHWC, box)
            shown.append(ShownImage(chosen[image.number], image.name, *size, original, versions, cut))
    return shown


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    shown_width, shown_height = min(width, _MAX_SIDE), min(height, _MAX_SIDE)
    left, top = (width - shown_width) // 2, (height - shown_height) // 2
    return left, top, left + shown_width, top + shown_height


def _data_uri(pixels_BHWC: Tensor, box: tuple[int, int, int, int]) -> str:
    """Lossless: WebP where Pillow has it (25 % smaller), else PNG."""
    left, top, right, bottom = box
    pixels = pixels_BHWC[0, top:bottom, left:right].contiguous().numpy()
    buffer = io.BytesIO()
    if features.check("webp"):
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=3)
        kind = "webp"
    else:
        Image.fromarray(pixels).save(buffer, "PNG")
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
