"""The modules that are exported: what a device runs.

Shapes: x_BCHW and x_hat_BCHW float32 in [0, 1]; y_BMhw, y_hat_BMhw float32 with h = H / 16, w = W / 16.
The entropy model is in none of them, rounding only in `Full`: NPUs support neither.
"""

from typing import Literal

import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn
from torch.nn import functional as F

from export.upsample import rewrite_upsampling
from relic.codec.entropy import medians_of, round_about_medians
from relic.options import Upsample

Part = Literal["encoder", "decoder", "full"]
INPUT_NAMES: dict[Part, str] = {"encoder": "x", "decoder": "y_hat", "full": "x"}
OUTPUT_NAMES: dict[Part, str] = {"encoder": "y", "decoder": "x_hat", "full": "x_hat"}


class Encoder(nn.Module):
    """x -> y, not rounded."""

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_a = fold_gdn(model.g_a)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        output: Tensor = self.g_a(x_BCHW)
        return output


class Decoder(nn.Module):
    """y_hat -> x_hat, clipped to [0, 1]."""

    def __init__(self, model: FactorizedPrior, upsample: Upsample) -> None:
        super().__init__()
        self.g_s = clipped_synthesis(model, upsample)

    def forward(self, y_hat_BMhw: Tensor) -> Tensor:
        output: Tensor = self.g_s(y_hat_BMhw)
        return output


class Full(nn.Module):
    """x -> x_hat: encoder, rounding about the medians, decoder."""

    def __init__(self, model: FactorizedPrior, upsample: Upsample) -> None:
        super().__init__()
        self.g_a = fold_gdn(model.g_a)
        self.g_s = clipped_synthesis(model, upsample)
        self.medians: Tensor
        self.register_buffer("medians", medians_of(model).detach().clone())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        output: Tensor = self.g_s(round_about_medians(self.g_a(x_BCHW), self.medians))
        return output


class FoldedGDN(nn.Module):
    """GDN with beta and gamma computed once: their reparametrisation is needed only in training."""

    def __init__(self, gdn: GDN) -> None:
        super().__init__()
        self.inverse = gdn.inverse
        self.beta: Tensor
        self.gamma: Tensor
        with torch.no_grad():
            self.register_buffer("beta", gdn.beta_reparam(gdn.beta).clone())
            self.register_buffer("gamma", gdn.gamma_reparam(gdn.gamma)[:, :, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.sqrt(F.conv2d(x * x, self.gamma, self.beta))
        # Not rsqrt: exporters may write it as Reciprocal, which some NPUs do not support.
        return x * norm if self.inverse else x / norm


def fold_gdn(transform: nn.Sequential) -> nn.Sequential:
    """The same layers under the same names, with each GDN folded. `transform` is not changed."""
    return nn.Sequential(*(FoldedGDN(layer) if isinstance(layer, GDN) else layer for layer in transform))


def clipped_synthesis(model: FactorizedPrior, upsample: Upsample) -> nn.Sequential:
    """g_s with a last layer that clips to [0, 1], and with the upsampling layers of `upsample`."""
    return rewrite_upsampling(nn.Sequential(*fold_gdn(model.g_s), nn.Hardtanh(0.0, 1.0)), upsample)


def build_part(part: Part, model: FactorizedPrior, upsample: Upsample) -> nn.Module:
    """The module of `part`, in eval mode."""
    if part == "encoder":
        return Encoder(model).eval()
    return {"decoder": Decoder, "full": Full}[part](model, upsample).eval()
