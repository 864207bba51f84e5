"""Post-training quantization by the rate-distortion loss (compare RDO-PTQ, Shi et al. 2023, arXiv 2211.02854).

The steps of weights and activations, the rounding of each weight up or down, and the biases are learnt together, on a
few crops. The rounding is an offset of at most half a step before the weight is rounded (compare Cheng et al. 2024,
arXiv 2309.05516). The float weights themselves stay.
"""

import copy
import logging
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from export.int8.overrides import KnownSteps
from relic.codec.entropy import bits_per_pixel, medians_of
from relic.codec.pixels import to_float
from relic.quantization.fake import FakeQuantization, Stage, channel_steps, rounded, spread
from relic.quantization.latent_grid import LatentGrid
from relic.quantization.observing import observe_ranges

_BATCH = 4
_PASSES = 8
_RATE_OFFSET, _RATE_WEIGHT_STEP, _RATE_STEP, _RATE_BIAS = 1e-2, 1e-3, 3e-3, 3e-2
"""Learning rates of Adam at the start. They fall linearly to 0."""
_MOST = 127
_PIXEL = 1 / 255
_SYMBOL_PART = 0.1
"""With the step of a coarse grid, 1, the offsets of latents wander by a good part of a symbol, and the rate rises."""

log = logging.getLogger(__name__)


class Learned(NamedTuple):
    """A model whose weights are on the grid, and the grid."""

    model: FactorizedPrior
    weight_steps: dict[str, Tensor]
    """Per convolution: (O,), or (O, 2, 2) by phase."""
    activation_steps: dict[str, float]
    """Per ReLU."""

    @property
    def known(self) -> KnownSteps:
        """The steps in the order of an ONNX part, in which the channels of the first phase come first."""
        channels = {
            name: (steps if steps.ndim == 1 else steps.permute(1, 2, 0)).flatten().numpy()
            for name, steps in self.weight_steps.items()
        }
        return KnownSteps(self.activation_steps, channels)


class _Adjustable(FakeQuantization):
    """Fake quantization with rounding offsets, biases and steps of weights that can be learnt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offsets = {stage.name: nn.Parameter(torch.zeros_like(stage.layer.weight)) for stage in self.stages}
        self._steps = {stage.name: channel_steps(stage.layer, by_phase=self.by_phase) for stage in self.stages}
        self.log_ratios = {name: nn.Parameter(torch.zeros_like(steps)) for name, steps in self._steps.items()}
        self.shifts = {stage.name: nn.Parameter(torch.zeros(stage.layer.out_channels)) for stage in self.stages}

    def steps(self, stage: Stage) -> Tensor:
        steps = self._steps[stage.name] * self.log_ratios[stage.name].exp()
        return steps * (self.in_file(stage, steps.detach()) / steps.detach())

    def weights(self, stage: Stage) -> tuple[Tensor, Tensor]:
        steps = self.steps(stage)
        spread_steps = spread(steps, stage.layer)
        levels = rounded(stage.layer.weight / spread_steps + self.offsets[stage.name]).clamp(-_MOST, _MOST)
        return levels * spread_steps, steps

    def bias(self, stage: Stage) -> Tensor:
        """Moved in units of the next activation's step, latents in parts of a symbol, whatever their grid."""
        if stage.relu is not None:
            unit = self.log_steps[stage.relu].detach().exp()
        else:
            unit = torch.tensor(_PIXEL if stage.name.startswith("g_s") else _SYMBOL_PART)
        return super().bias(stage) + self.shifts[stage.name] * unit

    def groups(self) -> list[dict[str, object]]:
        """Adam's groups of parameters."""
        named = (
            (self.offsets, _RATE_OFFSET),
            (self.log_ratios, _RATE_WEIGHT_STEP),
            (self.log_steps, _RATE_STEP),
            (self.shifts, _RATE_BIAS),
        )
        return [{"params": list(parameters.values()), "lr": rate} for parameters, rate in named]


def learn(
    model: FactorizedPrior,
    images_BHWC: Tensor,
    *,
    lambda_bpp: float,
    by_phase: bool,
    grid: LatentGrid | None,
    transforms: Collection[str] = ("g_a", "g_s"),
) -> Learned:
    """Learn how to quantize `transforms` of a codec, which have ReLU, on crops (uint8). `model` is not changed.

    The loss is the mean squared error of pixels in [0, 1] plus `lambda_bpp` times the estimated bits per pixel. The
    decoder is given rounded latents, as the device is. The latents are not on their grid: on it they are moved, and the
    entropy bottleneck would estimate the rate of others.
    """
    model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    batches = [to_float(images_BHWC[first : first + _BATCH]) for first in range(0, len(images_BHWC), _BATCH)]
    ranges = observe_ranges(model, batches)
    fake = _Adjustable(model, by_phase=by_phase, grid=grid, float_latents=True, transforms=transforms)
    fake.set_ranges({name: largest for name, largest in ranges.items() if name in fake.log_steps})
    fake.attach()
    optimizer = torch.optim.Adam(fake.groups(), betas=(0.9, 0.99))
    total = _PASSES * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for x_BCHW in _in_turns(batches):
            loss = _loss(model, x_BCHW, lambda_bpp)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for offset in fake.offsets.values():
                    offset.clamp_(-0.5, 0.5)
    return _written(fake)


def _in_turns(batches: list[Tensor]) -> Iterator[Tensor]:
    for _ in range(_PASSES):
        for number in torch.randperm(len(batches)).tolist():
            yield batches[number]


def _loss(model: FactorizedPrior, x_BCHW: Tensor, lambda_bpp: float) -> Tensor:
    y = model.g_a(x_BCHW)
    _, likelihoods = model.entropy_bottleneck(y, training=True)
    medians = medians_of(model)
    x_hat = model.g_s(rounded(y - medians) + medians)
    bpp = bits_per_pixel(likelihoods, x_BCHW.size(2) * x_BCHW.size(3)).mean()
    loss: Tensor = (x_hat - x_BCHW).square().mean() + lambda_bpp * bpp
    return loss


@torch.no_grad()
def _written(fake: _Adjustable) -> Learned:
    """The learnt values in the model's own weights and biases."""
    steps = {}
    for stage in fake.stages:
        bias, (weights, steps[stage.name]) = fake.bias(stage).clone(), fake.weights(stage)
        assert stage.layer.bias is not None
        stage.layer.weight.copy_(weights)
        stage.layer.bias.copy_(bias)
    fake.detach()
    return Learned(fake.model, {name: each.detach() for name, each in steps.items()}, fake.activation_steps)
