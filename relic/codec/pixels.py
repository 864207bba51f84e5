"""Convert 8-bit pixels to floats and back. No other file does this.

Shapes: images_BHWC uint8 0..255; x_BCHW float32 in [0, 1], channels_last.
"""

import torch
from torch import Tensor


def to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [0, 1] on the same device, in channels_last memory."""
    # Permuting BHWC gives a channels_last view, and the division keeps its layout.
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def round_to_8bit(x_BCHW: Tensor) -> Tensor:
    """float (B, 3, H, W) -> float32 of the same shape, clamped to [0, 1] and rounded to the 256 levels of 8 bits."""
    return x_BCHW.float().clamp(0, 1).mul(255).round().div(255)


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """float (B, 3, H, W) -> uint8 (B, H, W, 3), clamped to [0, 1] and rounded half to even."""
    return x_BCHW.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
