"""What a run minimises, always in fp32.

recon = alpha L1 + (1 - alpha) (1 - MS-SSIM)        or, with distortion "mse", the mean squared error
rd    = recon + lambda_bpp bpp
"""

import functools
from typing import Any, NamedTuple

import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from relic.options import Distortion, LossType

MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's five scales, finest first."""
_FLOOR = 1e-6


class LossConfig(NamedTuple):
    """What is minimised and how its parts weigh."""

    loss_type: LossType
    distortion: Distortion
    alpha_l1: float
    lambda_bpp: float

    @property
    def needs_ms_ssim(self) -> bool:
        return self.distortion == "l1_msssim" and self.alpha_l1 < 1


class Loss(NamedTuple):
    """Scalars on the model's device, float32."""

    total: Tensor
    distortion: Tensor
    bpp: Tensor
    psnr_db: Tensor
    """Of the batch's mean squared error, before rounding: to watch a run, not to quote."""
    ms_ssim: Tensor
    """Not a number where the loss does not need it."""


def differentiable_ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) of images in [0, 1], one value an image, with finite gradients.

    Equal to `pytorch_msssim.ms_ssim` wherever every scale's contrast term is over 1e-6. Below (contrast-inverted or
    constant images) that one cuts to 0 and then takes a power under 1, whose gradient is not a number.
    """
    window, weights = _ms_ssim_constants(x_BCHW.size(1), x_BCHW.device, x_BCHW.dtype)
    terms = []
    for level in range(len(MS_WEIGHTS)):
        ssim, contrast = _ssim(x_BCHW, y_BCHW, data_range=1.0, win=window, size_average=False)
        if level < len(MS_WEIGHTS) - 1:
            terms.append(contrast.clamp(min=_FLOOR))
            padding = [side % 2 for side in x_BCHW.shape[2:]]
            x_BCHW = F.avg_pool2d(x_BCHW, kernel_size=2, padding=padding)
            y_BCHW = F.avg_pool2d(y_BCHW, kernel_size=2, padding=padding)
        else:
            terms.append(ssim.clamp(min=_FLOOR))
    return torch.prod(torch.stack(terms) ** weights, dim=0).mean(dim=1)


@functools.cache
def _ms_ssim_constants(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Window (C, 1, 1, 11) and weights (5, 1, 1), brought to a device once: each such copy makes it wait."""
    with torch.inference_mode(False):  # else they could not be used in a backward pass
        window = _fspecial_gauss_1d(11, 1.5).repeat(channels, 1, 1, 1)
        weights = torch.tensor(MS_WEIGHTS).view(-1, 1, 1)
        return window.to(device, dtype), weights.to(device)


def bits_per_pixel(likelihoods: Tensor, num_pixels: int) -> Tensor:
    """Estimated rate of each image, (B,): -log2 of the likelihoods (B, M, h, w) summed, over `num_pixels`."""
    return -torch.log2(likelihoods.float()).flatten(1).sum(1) / num_pixels


def compute_loss(x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor, config: LossConfig) -> Loss:
    """Mean loss over the batch. `x` in [0, 1]; `x_hat` unbounded, any float dtype; likelihoods in (0, 1].

    Only MS-SSIM sees `x_hat` clamped to [0, 1]: a clamped L1 would leave out-of-range pixels without a gradient.
    """
    with torch.autocast(x_BCHW.device.type, enabled=False), without_tf32():
        # Widened first: gradients known in fp16 would vanish before a scaler's factor could reach them.
        outputs = x_hat_BCHW.float(), likelihoods.float()
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in outputs]
        loss = _loss_of(x_BCHW, inputs[0], inputs[1], config)
        if not loss.total.requires_grad:
            return loss
        reached = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(loss.total, reached, allow_unused=True))
        gradients = [next(found) if tensor.requires_grad else None for tensor in inputs]
        total = _WithGradients.apply(loss.total.detach(), *outputs, *gradients)
    return Loss(total, *(part.detach() for part in loss[1:]))


def _loss_of(x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor, config: LossConfig) -> Loss:
    mse = F.mse_loss(x_hat_BCHW, x_BCHW)
    similarity = torch.full_like(mse, float("nan"))
    if config.distortion == "mse":
        distortion = mse
    else:
        distortion = config.alpha_l1 * F.l1_loss(x_hat_BCHW, x_BCHW)
        if config.needs_ms_ssim:
            similarity = differentiable_ms_ssim(x_hat_BCHW.clamp(0, 1), x_BCHW).mean()
            distortion = distortion + (1 - config.alpha_l1) * (1 - similarity)
    bpp = bits_per_pixel(likelihoods, x_BCHW.size(2) * x_BCHW.size(3)).mean()
    total = distortion + config.lambda_bpp * bpp if config.loss_type == "rd" else distortion
    return Loss(total, distortion, bpp, -10 * torch.log10(mse.detach()), similarity.detach())


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are known already.

    The loss has convolutions, and so has its backward pass. TF32 is a switch of the whole process, read when a kernel
    starts: so the loss's gradients are computed with it, where the switch is off, and not when `backward` is called.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, x_hat: Tensor, likelihoods: Tensor, *gradients: Tensor | None) -> Tensor:
        ctx.known = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        known = (None if gradient is None else gradient * upstream for gradient in ctx.known)
        return (None, *known, None, None)


class without_tf32:
    """Context in which CUDA convolutions and matrix products keep all 24 bits of fp32."""

    def __enter__(self) -> None:
        self._before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before
