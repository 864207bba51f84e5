"""The training loss, always computed in fp32.

recon = alpha L1 + (1 - alpha) (1 - MS-SSIM)        or, with distortion "mse", the mean squared error
rd    = recon + lambda_bpp bpp
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from relic.codec.entropy import bits_per_pixel
from relic.codec.ms_ssim import ms_ssim
from relic.codec.precision import without_tf32
from relic.options import Distortion, LossType

_FLOOR = 1e-6
"""Smallest value of a term of MS-SSIM. At 0 the gradient is NaN."""


class LossConfig(NamedTuple):
    """The kind of loss and the weights of its terms."""

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
    """From the batch's mean squared error before rounding. For the status line; published figures use `metrics`."""
    ms_ssim: Tensor
    """NaN if the loss does not need it."""


def compute_loss(
    x_BCHW: Tensor,
    x_hat_BCHW: Tensor,
    likelihoods: Tensor,
    config: LossConfig,
    formula: Callable[[Tensor, Tensor, Tensor, LossConfig], Loss] | None = None,
) -> Loss:
    """Mean loss over the batch. `x` in [0, 1]; `x_hat` unbounded, any float dtype; likelihoods in (0, 1].

    `formula`: `loss_formula`, compiled; by default as it is.
    """
    with torch.autocast(x_BCHW.device.type, enabled=False), without_tf32():
        # Cast to fp32 first: in fp16 small gradients would become 0 before the scaler multiplies them.
        outputs = x_hat_BCHW.float(), likelihoods.float()
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in outputs]
        loss = (formula or loss_formula)(x_BCHW, inputs[0], inputs[1], config)
        if not loss.total.requires_grad:
            return loss
        reached = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(loss.total, reached, allow_unused=True))
        gradients = [next(found) if tensor.requires_grad else None for tensor in inputs]
        total = _WithGradients.apply(loss.total.detach(), *outputs, *gradients)
    return loss._replace(total=total)


@torch.no_grad()
def image_losses(x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor, config: LossConfig) -> Tensor:
    """The loss of each image by itself, (B,)."""
    with torch.autocast(x_BCHW.device.type, enabled=False), without_tf32():
        return loss_formula(x_BCHW, x_hat_BCHW.float(), likelihoods.float(), config, per_image=True).total


def loss_formula(
    x_BCHW: Tensor, x_hat_BCHW: Tensor, likelihoods: Tensor, config: LossConfig, per_image: bool = False
) -> Loss:
    """The loss, for float32 and without TF32: means over the batch, or with `per_image` over each image, (B,).

    `x_hat` is clamped to [0, 1] for MS-SSIM only. With a clamped L1, pixels out of range would have no gradient.
    """

    def mean_error(error: Callable[..., Tensor]) -> Tensor:
        if per_image:
            return error(x_hat_BCHW, x_BCHW, reduction="none").flatten(1).mean(1)
        return error(x_hat_BCHW, x_BCHW)

    def mean(of_images: Tensor) -> Tensor:
        return of_images if per_image else of_images.mean()

    mse = mean_error(F.mse_loss)
    similarity = torch.full_like(mse, float("nan"))
    if config.distortion == "mse":
        distortion = mse
    else:
        distortion = config.alpha_l1 * mean_error(F.l1_loss)
        if config.needs_ms_ssim:
            similarity = mean(ms_ssim(x_hat_BCHW.clamp(0, 1), x_BCHW, floor=_FLOOR))
            distortion = distortion + (1 - config.alpha_l1) * (1 - similarity)
    bpp = mean(bits_per_pixel(likelihoods, x_BCHW.size(2) * x_BCHW.size(3)))
    total = distortion + config.lambda_bpp * bpp if config.loss_type == "rd" else distortion
    return Loss(
        total=total,
        distortion=distortion.detach(),
        bpp=bpp.detach(),
        psnr_db=-10 * torch.log10(mse.detach()),
        ms_ssim=similarity.detach(),
    )


class _WithGradients(torch.autograd.Function):
    """A value whose gradients were computed before.

    The backward pass of the loss contains convolutions too and must not use TF32. TF32 is a setting of the whole
    process, and a kernel reads it when it starts. So the gradients are computed together with the loss, while TF32 is
    off, and `backward` only multiplies them.
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
