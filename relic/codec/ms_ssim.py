"""MS-SSIM, for the loss and for the evaluation.

Shapes: x_BCHW, y_BCHW images in [0, 1] of one float type.
"""

import functools
from typing import Any

import torch
from pytorch_msssim.ssim import _fspecial_gauss_1d
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first."""
_C1, _C2 = 0.01**2, 0.03**2
"""The constants in SSIM's two quotients that prevent division by zero, for pixels in [0, 1]."""


def ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor, *, floor: float = 0.0) -> Tensor:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003) per image, (B,). Both sides must be over 160 pixels.

    Equal to `pytorch_msssim.ms_ssim` with `data_range=1` up to rounding. Only `x` has a gradient.

    In float32, bright and even areas lose digits: a small variance is the difference of two large means there.
    Measurements need float64.

    floor: the smallest value of a scale's term. At 0, as in the paper, the gradient of a term that is not positive
        (images with inverted contrast, constant images) is NaN. So a loss needs a floor above 0.
    """
    assert not y_BCHW.requires_grad
    window, weights = _constants(x_BCHW.size(0) * x_BCHW.size(1), x_BCHW.device, x_BCHW.dtype)
    losses: Tensor = _Losses.apply(x_BCHW, y_BCHW, window)
    return weighted_product((1 - 2 * losses).clamp(min=floor), weights).mean(1)


def weighted_product(terms: Tensor, weights: Tensor) -> Tensor:
    """The product over the first dimension of `terms`, each to the power of its weight.

    Not by `torch.prod`: its backward pass reads a value from the device, so the host waits for it in each step.
    """
    return (terms.log() * weights).sum(0).exp()


class _Losses(torch.autograd.Function):
    """(1 - term) / 2 for the term of each scale, image and channel: (5, B, C).

    It is computed from the sum s = x + y and the difference d = x - y, because both quotients of SSIM have the same
    form in them:

        (2 cov(x, y) + C2)       / (var(x) + var(y) + C2)       = 1 - 2 var(d)    / (var(s) + var(d) + 2 C2)
        (2 mean(x) mean(y) + C1) / (mean(x)^2 + mean(y)^2 + C1) = 1 - 2 mean(d)^2 / (mean(s)^2 + mean(d)^2 + 2 C1)

    So a scale filters four maps in one call: s, d and their squares. The backward pass is written out: it filters three
    maps and works in place. Autograd's takes twice the time on a CPU, and more kernels on a GPU.

    Maps are (M, P, H, W), M kinds of P = B C planes. Each kind is one piece of memory.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, y_BCHW: Tensor, window: Tensor) -> Tensor:
        x, y = _planes(x_BCHW), _planes(y_BCHW)
        maps = _maps(4, x)
        torch.add(x, y, out=maps[:1])
        torch.sub(x, y, out=maps[1:2])
        saved, losses = [], []
        for level in range(len(WEIGHTS)):
            pixels, squares = maps.chunk(2)
            torch.mul(pixels, pixels, out=squares)
            smooth = _smooth(maps, window)
            means, variances = smooth.chunk(2)
            loss = _share_(variances.addcmul_(means, means, value=-1), 2 * _C2)
            saved += [pixels, smooth]
            if level < len(WEIGHTS) - 1:
                coarse = F.avg_pool2d(pixels, 2, padding=_odd_sides(pixels))
                maps = _maps(4, coarse)
                maps[:2] = coarse
            else:
                of_means = _share_(means * means, 2 * _C1)
                loss = loss + of_means - 2 * loss * of_means  # (1 - 2 a) (1 - 2 b) = 1 - 2 (a + b - 2 a b)
            losses.append(loss.mean((0, 2, 3)))
        ctx.save_for_backward(x_BCHW, window, *saved)
        return torch.stack(losses).view(-1, *x_BCHW.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_5BC: Tensor) -> tuple[Tensor, None, None]:
        x_BCHW, window, *saved = ctx.saved_tensors
        upstream = upstream_5BC.reshape(len(WEIGHTS), 1, -1, 1, 1)
        total = None
        for level in reversed(range(len(WEIGHTS))):
            pixels, smooth = saved[2 * level : 2 * level + 2]
            gradient = _half_gradient(pixels, smooth, window, with_means=level == len(WEIGHTS) - 1)
            factor = upstream[level] * (2 / smooth[0, 0].numel())
            if total is None:
                total = gradient.mul_(factor)
            else:
                total = _pool_backward(total, pixels[:1]).addcmul_(gradient, factor)
        assert total is not None
        return torch.empty_like(x_BCHW).copy_(total[0].unflatten(0, x_BCHW.shape[:2])), None, None


def _half_gradient(pixels: Tensor, smooth: Tensor, window: Tensor, *, with_means: bool) -> Tensor:
    """Half of the gradient of a scale's losses, summed over the pixels, by its x: (1, P, H, W).

    pixels: s and d.
    smooth: their means, and what `_share_` left of their variances.
    """
    means, variances = smooth.chunk(2)
    maps = _maps(3, means)
    by_mean, by_variances = maps[:1], _slopes(variances, out=maps[1:])
    by_squares_of_means = by_variances
    if with_means:
        squares = means * means
        share_of_means = _share_(squares, 2 * _C1)
        by_variances.mul_(1 - 2 * share_of_means)
        slopes = _slopes(squares, out=torch.empty_like(squares))
        by_squares_of_means = by_variances - slopes.mul_(1 - 2 * variances[1:])
    torch.mul(means[:1], by_squares_of_means[:1], out=by_mean)
    by_mean.addcmul_(means[1:], by_squares_of_means[1:], value=-1)
    of_mean, of_square_of_s, of_square_of_d = _smooth(maps, window, padding=window.size(-1) - 1).chunk(3)
    return of_mean.addcmul_(pixels[:1], of_square_of_s, value=-1).addcmul_(pixels[1:], of_square_of_d)


def _share_(both: Tensor, constant: float) -> Tensor:
    """d / (s + d + constant), for maps s and d. They become the divisor and the share."""
    divisor, share = both.chunk(2)
    divisor.add_(share).add_(constant)
    return share.div_(divisor)


def _slopes(both: Tensor, out: Tensor) -> Tensor:
    """The slopes of a share by s, with the opposite sign, and by d, from what `_share_` left in `both`."""
    (divisor, share), (by_s, by_d) = both.chunk(2), out.chunk(2)
    torch.div(share, divisor, out=by_s)
    torch.sub(torch.reciprocal(divisor), by_s, out=by_d)
    return out


def _smooth(maps: Tensor, window: Tensor, padding: int = 0) -> Tensor:
    """Filter both dimensions. With a padding of 10 it is the adjoint of the filter without: the window is symmetric.

    In float64 it adds up shifted images, because torch's convolution takes 3 times as long.
    """
    if maps.dtype != torch.float64:
        vertical = F.conv2d(maps, window.transpose(2, 3), padding=(padding, 0), groups=maps.size(1))
        return F.conv2d(vertical, window, padding=(0, padding), groups=maps.size(1))
    maps = F.pad(maps, [padding] * 4)
    for dim in (2, 3):
        size = maps.size(dim) - window.size(-1) + 1
        total = torch.zeros_like(maps.narrow(dim, 0, size))
        for shift, weight in enumerate(_weights_of_shifts()):
            total = total.add_(maps.narrow(dim, shift, size), alpha=weight)
        maps = total
    return maps


def _planes(x_BCHW: Tensor) -> Tensor:
    """(1, B C, H, W), in the memory format of `_format`."""
    if x_BCHW.device.type == "cpu" and x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return torch.cat(x_BCHW.split(1), dim=1)
    return x_BCHW.reshape(1, -1, *x_BCHW.shape[2:]).contiguous(memory_format=_format(x_BCHW.device))


def _maps(count: int, like: Tensor) -> Tensor:
    """Memory for `count` kinds of maps like those of `like`."""
    shape = count, *like.shape[1:]
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_format(like.device))


def _format(device: torch.device) -> torch.memory_format:
    """CUDA has a depthwise kernel for contiguous tensors only. Others take cuDNN's grouped convolution, which is slow.

    A CPU's kernel takes full vectors of planes.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _pool_backward(gradient: Tensor, pixels: Tensor) -> Tensor:
    """The gradient by `pixels` from that by their means over 2x2."""
    options = [2, 2], [2, 2], _odd_sides(pixels), False, True, None  # window, stride, padding; zeros of it count
    result: Tensor = torch.ops.aten.avg_pool2d_backward(gradient, pixels, *options)
    return result


def _odd_sides(maps: Tensor) -> list[int]:
    return [side % 2 for side in maps.shape[2:]]


@functools.cache
def _weights_of_shifts() -> list[float]:
    weights: list[float] = _window().flatten().tolist()
    return weights


def _window() -> Tensor:
    """(1, 1, 11), float32."""
    window: Tensor = _fspecial_gauss_1d(11, 1.5)
    return window


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constants(planes: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _cached_constants(planes, device, dtype)


@functools.cache
def _cached_constants(planes: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Window (P, 1, 1, 11) and weights (5, 1, 1). Cached, because a copy to a device waits for the device."""
    with torch.inference_mode(False):  # otherwise they could not be used in a backward pass
        window = _window().repeat(planes, 1, 1, 1)
        weights = torch.tensor(WEIGHTS, dtype=torch.promote_types(dtype, torch.float32)).view(-1, 1, 1)
        return window.to(device, dtype), weights.to(device)
