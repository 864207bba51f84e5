"""Measure the ranges of activations in float, before fake quantization begins."""

from collections.abc import Iterable

import torch
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.codec.entropy import medians_of, round_about_medians
from relic.quantization.fake import stages_of


@torch.no_grad()
def observe_ranges(model: FactorizedPrior, batches: Iterable[Tensor]) -> dict[str, float]:
    """The largest value of each ReLU after a convolution that is quantized: the mean over batches x (B, 3, H, W).

    The mean cuts off the largest values of a few images. The steps of the many others are smaller for it.
    """
    names = {stage.relu for transform in ("g_a", "g_s") for stage in stages_of(model, transform)} - {None}
    seen: dict[str, list[float]] = {}
    for x_BCHW in batches:
        values = x_BCHW
        for transform in ("g_a", "g_s"):
            for number, layer in enumerate(getattr(model, transform)):
                values = layer(values)
                if (name := f"{transform}.{number}") in names:
                    seen.setdefault(name, []).append(float(values.amax()))
            if transform == "g_a":
                values = round_about_medians(values, medians_of(model))
    return {name: sum(largest) / len(largest) for name, largest in seen.items()}
