"""MS-SSIM, for the loss and for the evaluation.

Shapes: x_BCHW, y_BCHW images in [0, 1] of one float type.
"""

import functools
from typing import Any

import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d, gaussian_filter
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first."""
_C1, _C2 = 0.01**2, 0.03**2
"""The constants in SSIM's two quotients that prevent division by zero, for pixels in [0, 1]."""


def ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor, *, floor: float = 0.0) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) per image, (B,). Both sides must be over 160 pixels.

    Equal to `pytorch_msssim.ms_ssim` with `data_range=1` up to rounding. It is computed from the sum s = x + y and the
    difference d = x - y, because both quotients of SSIM have the same form in them:

        (2 mean(x) mean(y) + C1) / (mean(x)^2 + mean(y)^2 + C1) = 1 - 2 mean(d)^2 / (mean(s)^2 + mean(d)^2 + 2 C1)
        (2 cov(x, y) + C2)       / (var(x) + var(y) + C2)       = 1 - 2 var(d)    / (var(s) + var(d) + 2 C2)

    So a scale filters s, d and their squares in one call: few kernels on a GPU, and full vectors on a CPU.

    In float32, bright and even areas lose digits: a small variance is the difference of two large means there.
    Measurements need float64.

    floor: the smallest value of a scale's term. At 0, as in the paper, the gradient of a term that is not positive
        (images with inverted contrast, constant images) is NaN. So a loss needs a floor above 0.
    """
    channels = x_BCHW.size(1)
    # CUDA has a depthwise kernel for contiguous tensors only. Others take cuDNN's grouped convolution, which is slow.
    layout = torch.channels_last if x_BCHW.device.type == "cpu" else torch.contiguous_format
    both = torch.cat([x_BCHW + y_BCHW, x_BCHW - y_BCHW], dim=1).contiguous(memory_format=layout)
    window, weights = _constants(4 * channels, x_BCHW.device, x_BCHW.dtype)
    losses = []
    for level in range(len(WEIGHTS)):
        means, means_of_squares = _smooth(torch.cat([both, both * both], dim=1), window).chunk(2, dim=1)
        squares = means * means
        loss: Tensor = _Share.apply(means_of_squares - squares, 2 * _C2)
        if level < len(WEIGHTS) - 1:
            both = F.avg_pool2d(both, kernel_size=2, padding=[side % 2 for side in both.shape[2:]])
        else:
            of_means: Tensor = _Share.apply(squares, 2 * _C1)
            loss = loss + of_means - 2 * loss * of_means  # (1 - 2 a) (1 - 2 b) = 1 - 2 (a + b - 2 a b)
        losses.append(loss.flatten(2).mean(2))
    terms = (1 - 2 * torch.stack(losses)).clamp(min=floor)
    return weighted_product(terms, weights).mean(1)


def weighted_product(terms: Tensor, weights: Tensor) -> Tensor:
    """The product over the first dimension of `terms`, each to the power of its weight.

    Not by `torch.prod`: its backward pass reads a value from the device, so the host waits for it in each step.
    """
    return (terms.log() * weights).sum(0).exp()


def _smooth(x_BCHW: Tensor, window: Tensor) -> Tensor:
    """`gaussian_filter`. In float64 it adds up shifted images, because torch's convolution takes 3 times as long."""
    if x_BCHW.dtype != torch.float64:
        filtered: Tensor = gaussian_filter(x_BCHW, window)
        return filtered
    for dim in (2, 3):
        size = x_BCHW.size(dim) - window.size(-1) + 1
        total = torch.zeros_like(x_BCHW.narrow(dim, 0, size))
        for shift, weight in enumerate(_weights_of_shifts()):
            total = total.add_(x_BCHW.narrow(dim, shift, size), alpha=weight)
        x_BCHW = total
    return x_BCHW


class _Share(torch.autograd.Function):
    """d / (s + d + constant), for (B, 2C, H, W) that holds s and then d.

    Autograd's backward pass takes twice as many kernels, and they are a large part of a training step.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor, constant: float) -> Tensor:
        of_sum, of_difference = both.chunk(2, dim=1)
        total = of_sum + of_difference + constant
        share = of_difference / total
        ctx.save_for_backward(share, total)
        return share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        share, total = ctx.saved_tensors
        scaled = upstream / total
        of_difference = torch.addcmul(scaled, share, scaled, value=-1)
        return torch.cat([of_difference - scaled, of_difference], dim=1), None


@functools.cache
def _weights_of_shifts() -> list[float]:
    weights: list[float] = _window().flatten().tolist()
    return weights


def _window() -> Tensor:
    """(1, 1, 11), float32."""
    window: Tensor = _fspecial_gauss_1d(11, 1.5)
    return window


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constants(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _cached_constants(channels, device, dtype)


@functools.cache
def _cached_constants(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Window (C, 1, 1, 11) and weights (5, 1, 1). Cached, because a copy to a device waits for the device."""
    with torch.inference_mode(False):  # otherwise they could not be used in a backward pass
        window = _window().repeat(channels, 1, 1, 1)
        weights = torch.tensor(WEIGHTS, dtype=torch.promote_types(dtype, torch.float32)).view(-1, 1, 1)
        return window.to(device, dtype), weights.to(device)
