"""Quality of a reconstruction, one value per image. Measured on 8-bit pixels, as in published tables, in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from relic.codec.constants import MIN_MS_SSIM_SIDE
from relic.codec.entropy import bits_per_pixel
from relic.codec.ms_ssim import ms_ssim
from relic.codec.pixels import round_to_8bit
from relic.codec.scores import Score


class ImageScores(NamedTuple):
    """One value per image, (B,) float64 tensors on the CPU."""

    psnr_db: Tensor
    ms_ssim: Tensor
    """NaN if a side is 160 pixels or less: MS-SSIM is not defined there."""
    bpp: Tensor
    """Rate estimated from the likelihoods, bits per pixel."""


def psnr_db(x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
    """10 log10(1 / MSE) of images in [0, 1], (B,). `x_hat` is rounded to 8 bits first. Infinite if they are equal."""
    squared = (x_BCHW.double() - round_to_8bit(x_hat_BCHW).double()).square()
    return -10 * torch.log10(squared.flatten(1).mean(1))


def ms_ssim_8bit(x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) in [0, 1], (B,). `x_hat` is rounded to 8 bits first."""
    if min(x_BCHW.shape[2:]) < MIN_MS_SSIM_SIDE:
        return torch.full((x_BCHW.size(0),), float("nan"), device=x_BCHW.device)
    return ms_ssim(x_BCHW.double(), round_to_8bit(x_hat_BCHW).double())


@torch.no_grad()
def score_images(x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor) -> ImageScores:
    """Score a batch of reconstructions. Likelihoods (B, M, h, w) in (0, 1]; the rate is per pixel of `x`."""
    bpp = bits_per_pixel(likelihoods, x_BCHW.size(2) * x_BCHW.size(3))
    psnr, similarity = psnr_db(x_BCHW, x_hat_BCHW), ms_ssim_8bit(x_BCHW, x_hat_BCHW)
    return ImageScores(psnr_db=psnr.double().cpu(), ms_ssim=similarity.double().cpu(), bpp=bpp.double().cpu())


@torch.no_grad()
def score_coded(x_1CHW: Tensor, x_hat_1CHW: Tensor, num_bytes: int) -> Score:
    """Score one image that was coded into `num_bytes`."""
    similarity = ms_ssim_8bit(x_1CHW, x_hat_1CHW).item()
    return Score(
        psnr_db=psnr_db(x_1CHW, x_hat_1CHW).item(),
        ms_ssim=None if math.isnan(similarity) else similarity,
        bpp_real=8 * num_bytes / (x_1CHW.size(2) * x_1CHW.size(3)),
    )
