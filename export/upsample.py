"""The decoder's upsampling by other layers that compute the same, for devices that do not support CompressAI's layer.

That layer is a transposed convolution with a 5x5 kernel w, stride 2, padding 2 and output padding 1. Along one side,
output o takes input i through tap k = o + 2 - 2i. Two facts make the rewrites exact:

- A sixth tap of value 0 makes the output as long as output padding did. Padding is then equal on both ends (`deconv6`).
- Outputs 2m and 2m + 1 depend only on inputs m - 1, m and m + 1. So each is a 3-tap convolution: in two dimensions 4C
  channels at the input's resolution, which are then interleaved. `subpixel` interleaves by DepthToSpace,
  `subpixel-deconv2` by a transposed convolution with a 2x2 kernel of ones and zeros.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.model import ConvLayer
from relic.errors import InputError
from relic.options import Upsample

_TAPS = torch.tensor([[4, 2, 0], [5, 3, 1]])
"""The tap that output phase r takes at position t of a 3-tap convolution: 4 + r - 2t; tap 5 is the 0."""


class Shuffle(nn.Module):
    """(B, 4C, h, w) -> (B, C, 2h, 2w): channel (2 ry + rx) C + c becomes row phase ry, column phase rx of channel c.

    This is DepthToSpace in DCR order: the order of TFLite, and the only one before ONNX opset 11. torch's own
    `pixel_shuffle` is exported in the other order, which fewer devices support.
    """

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _DepthToSpace.apply(x)
        return output


class Subpixel(nn.Module):
    """Convolution, activation, interleaving. The activation comes first so that INT8 rounds fewer tensors."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None, shuffle: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        output: Tensor = self.shuffle(x if self.activation is None else self.activation(x))
        return output


class _DepthToSpace(torch.autograd.Function):
    """Its own function, because torch has no operator that its exporter writes in DCR order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        blocks = x.reshape(batch, 2, 2, channels // 4, height, width)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op("DepthToSpace", x, blocksize_i=2, mode_s="DCR")


def rewrite_upsampling(transform: nn.Sequential, upsample: Upsample) -> nn.Sequential:
    """The same function by other layers, under the same names. `transform` is not changed.

    Raises InputError if a transposed convolution is not CompressAI's.
    """
    layers = list(transform.named_children())
    rewritten: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (name, layer) in enumerate(layers):
        if not isinstance(layer, nn.ConvTranspose2d) or upsample == "deconv5":
            if name not in rewritten:
                rewritten[name] = layer
            continue
        _check(name, layer)
        if upsample == "deconv6":
            rewritten[name] = deconv6(layer)
            continue
        following, after = layers[place + 1] if place + 1 < len(layers) else ("", None)
        pointwise = after if isinstance(after, nn.ReLU | nn.Hardtanh) else None
        shuffle = Shuffle() if upsample == "subpixel" else shuffle_by_deconv2(layer.out_channels)
        rewritten[name] = Subpixel(phase_conv(layer), pointwise, shuffle)
        if pointwise is not None:
            rewritten[following] = nn.Identity()
    return nn.Sequential(rewritten)


@torch.no_grad()
def deconv6(deconv5: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """The transposed convolution with a 6x6 kernel and no output padding."""
    layer = nn.ConvTranspose2d(deconv5.in_channels, deconv5.out_channels, 6, stride=2, padding=2)
    layer.weight.copy_(F.pad(deconv5.weight, (0, 1, 0, 1)))
    _copy_bias(layer, deconv5)
    return layer


@torch.no_grad()
def phase_conv(deconv5: nn.ConvTranspose2d) -> nn.Conv2d:
    """The 3x3 convolution whose 4C channels are the four phases of the output, row phase first."""
    channels = deconv5.out_channels
    layer = nn.Conv2d(deconv5.in_channels, 4 * channels, 3, padding=1)
    padded = F.pad(deconv5.weight, (0, 1, 0, 1))
    taps = padded[:, :, _TAPS[:, None, :, None], _TAPS[None, :, None, :]]  # in, out, ry, rx, ty, tx
    layer.weight.copy_(taps.permute(2, 3, 1, 0, 4, 5).reshape(layer.weight.shape))
    _copy_bias(layer, deconv5, repeats=4)
    return layer


@torch.no_grad()
def shuffle_by_deconv2(channels: int) -> nn.ConvTranspose2d:
    """`Shuffle` as a transposed convolution with a 2x2 kernel and stride 2: every output is one input times 1."""
    layer = nn.ConvTranspose2d(4 * channels, channels, 2, stride=2, bias=False)
    layer.weight.copy_(torch.eye(4 * channels).view(4 * channels, 2, 2, channels).permute(0, 3, 1, 2))
    return layer


def _copy_bias(layer: ConvLayer, original: nn.ConvTranspose2d, repeats: int = 1) -> None:
    assert layer.bias is not None and original.bias is not None
    layer.bias.copy_(original.bias.repeat(repeats))


def _check(name: str, layer: nn.ConvTranspose2d) -> None:
    found = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.bias is not None)
    if found != ((5, 5), (2, 2), (2, 2), (1, 1), 1, True):
        raise InputError(f"--upsample: layer g_s.{name} is not the 5x5 one that can be rewritten; use deconv5")
