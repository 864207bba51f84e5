"""An extra loss while fine-tuning: how far a swapped codec's insides are from those of the GDN codec it came from."""

from typing import Any

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.model import Parts
from relic.codec.precision import in_fp32, without_tf32


class Observed(nn.Module):
    """A codec whose forward returns, beside what the codec's does, `y`, `y_hat` and the decoder's `features`."""

    def __init__(self, model: FactorizedPrior, *, decoder_in_fp32: bool = False) -> None:
        """`decoder_in_fp32`: the decoder is an fp32 island, and stays one although its layers are called singly."""
        super().__init__()
        self.model = model
        self._decode = in_fp32(self._features) if decoder_in_fp32 else self._features

    def forward(self, x_BCHW: Tensor) -> dict[str, Any]:
        y = self.model.g_a(x_BCHW)
        y_hat, likelihoods = self.model.entropy_bottleneck(y)
        *features, x_hat = self._decode(y_hat)
        return {"x_hat": x_hat, "likelihoods": {"y": likelihoods}, "y": y, "y_hat": y_hat, "features": features}

    def _features(self, y_hat: Tensor) -> list[Tensor]:
        return convolution_outputs(self.model.g_s, y_hat)


def convolution_outputs(transform: nn.Sequential, tensor: Tensor) -> list[Tensor]:
    """What every transposed convolution gives, before the nonlinearity behind it; the last is the output."""
    found = []
    for layer in transform:
        tensor = layer(tensor)
        if isinstance(layer, nn.ConvTranspose2d):
            found.append(tensor)
    return found


class Distillation:
    """The teacher and how much it counts. It runs in fp32 without gradients, and is part of no checkpoint."""

    def __init__(self, teacher: FactorizedPrior, parts: Parts, *, weight: float, num_steps: int) -> None:
        """`parts`: where the student was swapped; `num_steps`: of the whole run."""
        self._teacher = teacher.eval().requires_grad_(False)
        self._encoder, self._decoder = parts in ("encoder", "all"), parts in ("decoder", "all")
        self._weight, self._num_steps = weight, num_steps

    def weight(self, step: int) -> float:
        """In step `step` (from 0): falls linearly with the images seen, to zero where the run ends."""
        return self._weight * (1 - step / self._num_steps)

    def loss(self, x_BCHW: Tensor, output: dict[str, Any]) -> Tensor:
        """Relative squared error of the latents (encoder swapped) plus that of the features (decoder swapped).

        `output`: of `Observed`. Features are compared about each channel's mean, since a calibrated student's lie
        above zero; the teacher's come from the latents it would have got itself, under the student's noise.
        """
        with torch.autocast(x_BCHW.device.type, enabled=False), without_tf32():
            y, y_hat = output["y"].float(), output["y_hat"].float()
            with torch.no_grad():
                wanted_y = self._teacher.g_a(x_BCHW) if self._encoder else y
                wanted = convolution_outputs(self._teacher.g_s, wanted_y + (y_hat - y)) if self._decoder else []
            total = torch.zeros((), device=x_BCHW.device)
            if self._encoder:
                total = total + relative_error(y, wanted_y)
            for mine, theirs in zip(output["features"], wanted, strict=False):
                total = total + relative_error(_centred(mine.float()), _centred(theirs)) / len(output["features"])
        return total


def relative_error(values: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the squared deviation of `wanted` from its channels' means (both (B, C, h, w)); a scalar."""
    deviation = _centred(wanted).square().sum()
    return (values - wanted).square().sum() / deviation.clamp(min=torch.finfo(torch.float32).tiny)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean((0, 2, 3), keepdim=True)
