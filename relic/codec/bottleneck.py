"""CompressAI's entropy bottleneck without the reads that make a CUDA device wait twelve times a step."""

import functools

from compressai.entropy_models import EntropyBottleneck
from torch import Tensor


def avoid_device_reads(bottleneck: EntropyBottleneck) -> None:
    """Let `bottleneck` compute what it does, bit for bit, without reading from its device.

    CompressAI 1.2.8 keeps the order of its dimensions in a tensor on the model's device and reads it number by number.
    Only the bound `forward` changes: no parameter or module is wrapped or renamed.
    """
    bottleneck.forward = functools.partial(_forward, bottleneck)


def _forward(bottleneck: EntropyBottleneck, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
    """(B, M, h, w) -> the same, noisy (training) or rounded about the medians, and its likelihoods in (0, 1]."""
    noisy = bottleneck.training if training is None else training
    channels_first = x.transpose(0, 1).contiguous()
    values = channels_first.flatten(1).unsqueeze(1)
    y_hat = bottleneck.quantize(values, "noise" if noisy else "dequantize", bottleneck._get_medians())
    likelihoods = bottleneck._likelihood(y_hat)[0]
    if bottleneck.use_likelihood_bound:
        likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    y_hat, likelihoods = (each.reshape(channels_first.shape).transpose(0, 1) for each in (y_hat, likelihoods))
    return y_hat.contiguous(), likelihoods.contiguous()
