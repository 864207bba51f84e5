"""Quality of a reconstruction, one value an image, as published tables have it: on 8-bit pixels, in fp32."""

from typing import NamedTuple

import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d, gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from relic.codec.constants import MIN_MS_SSIM_SIDE
from relic.codec.loss import MS_WEIGHTS, bits_per_pixel, without_tf32
from relic.codec.pixels import round_to_8bit

_C1, _C2 = 0.01**2, 0.03**2
"""Keep SSIM's two quotients from dividing by nothing, for a range of 1."""


class ImageScores(NamedTuple):
    """(B,) float64 tensors on the CPU."""

    psnr_db: Tensor
    ms_ssim: Tensor
    """Not a number where a side is 160 pixels or less: MS-SSIM is not defined there."""
    bpp: Tensor
    """Estimated from the likelihoods."""


def psnr_db(x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
    """10 log10(1 / MSE) of images in [0, 1], (B,); `x_hat` is rounded to 8 bits first. Infinite when equal."""
    squared = (x_BCHW.double() - round_to_8bit(x_hat_BCHW).double()).square()
    return -10 * torch.log10(squared.flatten(1).mean(1))


def ms_ssim_8bit(x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) in [0, 1], (B,); `x_hat` is rounded to 8 bits first."""
    if min(x_BCHW.shape[2:]) < MIN_MS_SSIM_SIDE:
        return torch.full((x_BCHW.size(0),), float("nan"), device=x_BCHW.device)
    with without_tf32():
        return _ms_ssim(x_BCHW.float(), round_to_8bit(x_hat_BCHW))


def _ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """As `pytorch_msssim.ms_ssim` with data_range 1, to rounding; all that a scale filters goes through in one piece.

    That one filters images of three channels five times a scale, and on a CPU they are too thin to fill its vectors.
    """
    channels = x_BCHW.size(1)
    window = _fspecial_gauss_1d(11, 1.5).to(x_BCHW).repeat(5 * channels, 1, 1, 1)
    layout = torch.channels_last if x_BCHW.device.type == "cpu" else torch.contiguous_format
    pair = torch.cat([x_BCHW, y_BCHW], dim=1)
    terms = []
    for level in range(len(MS_WEIGHTS)):
        x, y = pair.split(channels, dim=1)
        stacked = torch.cat([pair, x * x, y * y, x * y], dim=1).contiguous(memory_format=layout)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = gaussian_filter(stacked, window).split(channels, dim=1)
        squares, product = mean_x.square() + mean_y.square(), mean_x * mean_y
        contrast = (2 * (mean_xy - product) + _C2) / (mean_xx + mean_yy - squares + _C2)
        if level < len(MS_WEIGHTS) - 1:
            terms.append(contrast)
            pair = F.avg_pool2d(pair, kernel_size=2, padding=[side % 2 for side in pair.shape[2:]])
        else:
            terms.append((2 * product + _C1) / (squares + _C1) * contrast)
    means = torch.stack([term.flatten(2).mean(2).relu() for term in terms])
    weights = torch.tensor(MS_WEIGHTS, device=x_BCHW.device).view(-1, 1, 1)
    return torch.prod(means**weights, dim=0).mean(dim=1)


@torch.no_grad()
def score_images(x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor) -> ImageScores:
    """Score a batch of reconstructions; rates count the pixels of `x`."""
    bpp = bits_per_pixel(likelihoods, x_BCHW.size(2) * x_BCHW.size(3))
    scores = (psnr_db(x_BCHW, x_hat_BCHW), ms_ssim_8bit(x_BCHW, x_hat_BCHW), bpp)
    return ImageScores(*(score.double().cpu() for score in scores))
