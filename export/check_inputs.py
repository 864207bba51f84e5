"""Inputs that the exported parts are checked on: crops of --shards, or else seeded random images.

Shapes: x_BCHW float32 in [0, 1]; y_hat_BMhw float32.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from export.crops import evenly_spread, fit_to_size, read_crops
from export.onnx_files import InputSize
from relic.arrays import Floats
from relic.bitstream.tables import Tables, dequantize
from relic.codec.constants import STRIDE
from relic.shards.shard_set import ShardSet

_SEED = 0


class CheckInputs(NamedTuple):
    """Batches of images for the encoder, and latents drawn from the entropy model for the decoder."""

    images: list[Floats]
    latents: list[Floats]
    description: str


def make_check_inputs(input_size: InputSize, tables: Tables, shards: ShardSet | None) -> CheckInputs:
    """Three batches of this size. With open sizes, two more batches of other sizes."""
    sizes = [(input_size.batch, input_size.height, input_size.width)] * 3
    if input_size.dynamic:
        sizes += [
            (input_size.batch + 1, input_size.height + STRIDE, input_size.width + 2 * STRIDE),
            (1, STRIDE, 3 * STRIDE),
        ]
    rng = np.random.default_rng(_SEED)
    if shards is None:
        images = [_random_images(number, size, rng) for number, size in enumerate(sizes)]
        source = "seeded pictures"  # the term of export.json and of the files' metadata
    else:
        crops = list(read_crops(shards, evenly_spread(shards, sum(size[0] for size in sizes))))
        starts = np.cumsum([0, *(size[0] for size in sizes)])
        images = [
            np.stack([fit_to_size(crop, *size[1:]) for crop in crops[first : first + size[0]]])
            for first, size in zip(starts.tolist(), sizes, strict=False)
        ]
        source = f"{shards.split} crops"
    latents = [draw_latents(tables, (batch, h // STRIDE, w // STRIDE), rng) for batch, h, w in sizes]
    return CheckInputs(images, latents, f"{sum(map(len, images))} {source}")


def draw_latents(tables: Tables, size: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """y_hat (B, M, h, w). Every channel has the distribution of its coding table, without escapes."""
    batch, height, width = size
    levels = rng.integers(0, 1 << 16, (tables.num_channels, batch * height * width))
    symbols = [
        np.minimum(np.searchsorted(cdf, level, "right") - 1, len(cdf) - 3) + offset
        for cdf, level, offset in zip(tables.rows, levels, tables.offsets, strict=True)
    ]
    shaped = np.stack(symbols).astype(np.int32).reshape(tables.num_channels, batch, height, width)
    return dequantize(shaped.transpose(1, 0, 2, 3), tables)


def _random_images(number: int, size: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Smooth colours with texture. The second batch is noise, which is the hardest input."""
    batch, height, width = size
    if number == 1:
        return rng.random((batch, 3, height, width), dtype=np.float32)
    small = torch.from_numpy(rng.random((batch, 3, 7, 9), dtype=np.float32))
    smooth = F.interpolate(small, (height, width), mode="bicubic", align_corners=False).numpy()
    texture = rng.normal(0, 0.03, (batch, 1, height, width))
    values: Floats = np.clip(smooth + texture, 0, 1).astype(np.float32)
    return values
