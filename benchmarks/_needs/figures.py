"""What the arithmetic of a training's needs begins with: measured figures, and assumptions where nothing was measured.

The measured ones are those of docs/performance.md and docs/scale.md.
"""

from typing import Literal, NamedTuple

from relic.options import Encoding

Gpu = Literal["rtx4090", "a100", "h100", "b200"]

PEAK_TFLOPS: dict[Gpu, float] = {"rtx4090": 165, "a100": 312, "h100": 989, "b200": 2250}
"""Published: dense fp16 products with sums in fp32. An H200 has those of an H100."""
UTILISATION = 0.2
"""Assumed part of the peak that a step reaches. No GPU was measured."""
CHANNELS = (128, 192)
"""N and M of the codec whose step is counted."""
SIDE = 224
PARAMETERS = 2_899_075
"""Of that codec, with ReLU on both sides."""


class Stored(NamedTuple):
    """One encoding: the bytes of a 224x224 crop in a tar, and the core microseconds that its loading takes."""

    bytes: int
    disk_us: float
    """From a disk or from memory."""
    store_us: float
    """By one request of its bytes."""


STORED: dict[Encoding, Stored] = {
    "raw": Stored(151_552, 28, 248),
    "jpg": Stored(25_000, 330, 98 + 330),
    "png": Stored(79_800, 28 + 393, 150 + 393),
}
"""Of a read from a store, the upper figure of its range. That of a PNG lies between those of 25 and of 150 kB."""

GPUS_PER_MACHINE = 8
CORES_PER_GPU = 1
"""For the process that launches the GPU's work. The loader leaves it free."""
RING_BYTES = 10 * 64 * SIDE * SIDE * 3
"""Pixels in reused batches: ten of 64 crops."""
TORCH_BYTES = 4e9
"""Assumed for torch with CUDA, per process."""
SHARD_BYTES_IN_MEMORY = 1400
"""Of the manifest, per shard and process: 130 MiB for 100,000."""
ORDER_BYTES = 15
"""Per sample and process, while an epoch without --shuffle_window is shuffled; 4 stay."""
WINDOW_SHARDS = 64
WINDOW_BYTES = 8
"""Per sample of a --shuffle_window."""

LATENCY_MS = 30
"""Assumed for one request to a store."""
PREFIX_REQUESTS_PER_SECOND = 5500
"""That S3 answers per partition of a bucket, as its documentation says."""
READS_USD_PER_MILLION = 0.4
"""Public list prices of S3 and Google, November 2026: 0.0004 USD per 1,000 reads."""


def step_gflop() -> float:
    """Forward and backward of one crop through analysis and synthesis, in 10^9 operations: two per multiplication.

    Backward takes twice the forward's: gradients of the inputs and of the weights. The first layer has no gradient of
    its inputs. Everything else takes under 1 %.
    """
    narrow, wide = CHANNELS
    sides = [SIDE >> power for power in (1, 2, 3, 4)]
    channels = [(3, narrow), (narrow, narrow), (narrow, narrow), (narrow, wide)]
    layers = [25 * a * b * side**2 for (a, b), side in zip(channels, sides, strict=True)]
    return 2 * (3 * 2 * sum(layers) - layers[0]) / 1e9


def assumed_images_per_second(gpu: Gpu) -> float:
    """Crops that one GPU trains on, if a step reaches the assumed part of its peak."""
    return round(UTILISATION * PEAK_TFLOPS[gpu] * 1000 / step_gflop())
