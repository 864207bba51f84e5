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


def ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor, *, floor: float = 0.0, stacked: bool = True) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) per image, (B,). Both sides must be over 160 pixels.

    Equal to `pytorch_msssim.ms_ssim` with `data_range=1` up to rounding.

    floor: the smallest value of a scale's term. At 0, as in the paper, the gradient of a term that is not positive
        (images with inverted contrast, constant images) is NaN. So a loss needs a floor above 0.
    stacked: filter everything that a scale needs in one call. This is faster on a CPU without gradients, because three
        channels do not fill its vectors. The results differ by rounding.
    """
    channels = x_BCHW.size(1)
    statistics, copies = (_stacked_statistics, 5) if stacked else (_statistics, 1)
    window, weights = _constants(channels * copies, x_BCHW.device, x_BCHW.dtype)
    terms = []
    for level in range(len(WEIGHTS)):
        found = statistics(x_BCHW, y_BCHW, window)
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
    mean_x, mean_y = gaussian_filter(x_BCHW, window), gaussian_filter(y_BCHW, window)
    square_x, square_y, product = mean_x.square(), mean_y.square(), mean_x * mean_y
    variance_x = gaussian_filter(x_BCHW * x_BCHW, window) - square_x
    variance_y = gaussian_filter(y_BCHW * y_BCHW, window) - square_y
    covariance = gaussian_filter(x_BCHW * y_BCHW, window) - product
    return _Statistics(product, square_x + square_y, variance_x + variance_y, covariance)


def _stacked_statistics(x_BCHW: Tensor, y_BCHW: Tensor, window: Tensor) -> _Statistics:
    layout = torch.channels_last if x_BCHW.device.type == "cpu" else torch.contiguous_format
    values = [x_BCHW, y_BCHW, x_BCHW * x_BCHW, y_BCHW * y_BCHW, x_BCHW * y_BCHW]
    means = gaussian_filter(torch.cat(values, dim=1).contiguous(memory_format=layout), window)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = means.split(x_BCHW.size(1), dim=1)
    squares, product = mean_x.square() + mean_y.square(), mean_x * mean_y
    return _Statistics(product, squares, mean_xx + mean_yy - squares, mean_xy - product)


@functools.cache
def _constants(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Window (C, 1, 1, 11) and weights (5, 1, 1). Cached, because a copy to a device waits for the device."""
    with torch.inference_mode(False):  # otherwise they could not be used in a backward pass
        window = _fspecial_gauss_1d(11, 1.5).repeat(channels, 1, 1, 1)
        weights = torch.tensor(WEIGHTS).view(-1, 1, 1)
        return window.to(device, dtype), weights.to(device)
