"""MS-SSIM, for the loss and for the evaluation.

Shapes: x_BCHW, y_BCHW images in [0, 1] of one float type.
"""

import functools
from typing import NamedTuple

import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d, gaussian_filter
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first."""
_C1, _C2 = 0.01**2, 0.03**2
"""The constants in SSIM's two quotients that prevent division by zero, for pixels in [0, 1]."""


class _Statistics(NamedTuple):
    """Statistics of x and y under the window, at each position of the window."""

    product: Tensor
    """Mean of x times mean of y."""
    squares: Tensor
    """Sum of the squared means."""
    variances: Tensor
    """Sum of the variances."""
    covariance: Tensor


def ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor, *, floor: float = 0.0) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) per image, (B,). Both sides must be over 160 pixels.

    Equal to `pytorch_msssim.ms_ssim` with `data_range=1` up to rounding. In float32, bright and even areas lose digits:
    a small variance is the difference of two large means there. Measurements need float64.

    floor: the smallest value of a scale's term. At 0, as in the paper, the gradient of a term that is not positive
        (images with inverted contrast, constant images) is NaN. So a loss needs a floor above 0.
    """
    window, weights = _constants(x_BCHW.size(1), x_BCHW.device, x_BCHW.dtype)
    terms = []
    for level in range(len(WEIGHTS)):
        found = _statistics(x_BCHW, y_BCHW, window)
        contrast = (2 * found.covariance + _C2) / (found.variances + _C2)
        if level < len(WEIGHTS) - 1:
            terms.append(contrast)
            padding = [side % 2 for side in x_BCHW.shape[2:]]
            x_BCHW = F.avg_pool2d(x_BCHW, kernel_size=2, padding=padding)
            y_BCHW = F.avg_pool2d(y_BCHW, kernel_size=2, padding=padding)
        else:
            terms.append((2 * found.product + _C1) / (found.squares + _C1) * contrast)
    means = torch.stack([term.flatten(2).mean(2).clamp(min=floor) for term in terms])
    return torch.prod(means**weights, dim=0).mean(dim=1)


def _statistics(x_BCHW: Tensor, y_BCHW: Tensor, window: Tensor) -> _Statistics:
    smooth = _sum_of_shifts if x_BCHW.dtype == torch.float64 else gaussian_filter
    mean_x, mean_y = smooth(x_BCHW, window), smooth(y_BCHW, window)
    square_x, square_y, product = mean_x.square(), mean_y.square(), mean_x * mean_y
    variance_x = smooth(x_BCHW * x_BCHW, window) - square_x
    variance_y = smooth(y_BCHW * y_BCHW, window) - square_y
    covariance = smooth(x_BCHW * y_BCHW, window) - product
    return _Statistics(product, square_x + square_y, variance_x + variance_y, covariance)


def _sum_of_shifts(x_BCHW: Tensor, window: Tensor) -> Tensor:
    """`gaussian_filter` with our window, as weighted sums of shifted images.

    torch's convolution in float64 is 3 times slower on a CPU.
    """
    for dim in (2, 3):
        size = x_BCHW.size(dim) - window.size(-1) + 1
        total = torch.zeros_like(x_BCHW.narrow(dim, 0, size))
        for shift, weight in enumerate(_weights_of_shifts()):
            total = total.add_(x_BCHW.narrow(dim, shift, size), alpha=weight)
        x_BCHW = total
    return x_BCHW


@functools.cache
def _weights_of_shifts() -> list[float]:
    weights: list[float] = _window().flatten().tolist()
    return weights


def _window() -> Tensor:
    """(1, 1, 11), float32."""
    window: Tensor = _fspecial_gauss_1d(11, 1.5)
    return window


@functools.cache
def _constants(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Window (C, 1, 1, 11) and weights (5, 1, 1). Cached, because a copy to a device waits for the device."""
    with torch.inference_mode(False):  # otherwise they could not be used in a backward pass
        window = _window().repeat(channels, 1, 1, 1)
        weights = torch.tensor(WEIGHTS, dtype=torch.promote_types(dtype, torch.float32)).view(-1, 1, 1)
        return window.to(device, dtype), weights.to(device)
