"""Quantization-aware training: the steps of activations are learnt with the weights, and do not move at the end."""

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.pixels import to_float
from relic.distributed import World, copy_from_main, max_over_ranks, mean_over_ranks
from relic.options import QatRanges, Upsample
from relic.quantization.fake import FakeQuantization
from relic.quantization.observing import observe_ranges

_FROZEN_SHARE = 0.1
"""The last part of the steps. The weights adapt to the final grid."""
_CROPS_PER_BATCH = 4
_MOMENTUM = 0.01
"""Of torch's `MovingAverageMinMaxObserver`."""
_RANGE_LEVELS: dict[QatRanges, int] = {"learned": 255, "moving_average": 255, "drpai": 127}
"""The level of the largest value. DRP-AI: Renesas DRP-AI TVM v2.7.0, QAT/PyTorch_sample/qat_retrain.py, which sets
`reduce_range`."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Quantizing:
    """The fake quantization of a run."""

    fake: FakeQuantization
    upsample: Upsample
    """The form in which the decoder is exported."""
    ranges: QatRanges
    frozen_from: int
    """The first step in which the steps of activations do not move."""
    world: World

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer learns besides the model."""
        return list(self.fake.log_steps.values())

    def begin_step(self, step: int) -> None:
        """Called before training step `step` (from 0)."""
        moves = step < self.frozen_from
        self.fake.momentum = _MOMENTUM if moves and self.ranges != "learned" else 0.0
        for parameter in self.parameters:
            parameter.requires_grad_(moves and self.ranges == "learned")

    def average_gradients(self) -> None:
        """Called after the backward pass: these parameters are outside of the model that the ranks share."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                mean_over_ranks(parameter.grad, self.world)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says about it, as plain values."""
        return {"upsample": self.upsample, "activation_steps": self.fake.activation_steps}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.fake.log_steps.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.fake.log_steps.items():
            parameter.copy_(state[name])


def start_quantizing(
    model: FactorizedPrior,
    upsample: Upsample,
    crops_BHWC: Tensor | None,
    *,
    ranges: QatRanges,
    num_steps: int,
    world: World,
) -> Quantizing:
    """Quantize `model` from now on. The first ranges are measured on crops (uint8); a resumed run has none."""
    over_ranks = functools.partial(max_over_ranks, world=world)
    fake = FakeQuantization(
        model, by_phase=upsample.startswith("subpixel"), range_levels=_RANGE_LEVELS[ranges], over_ranks=over_ranks
    )
    frozen_from = num_steps - int(num_steps * _FROZEN_SHARE)
    if world.is_main:
        log.info(
            "training with the roundings of INT8 in %d layers, for --upsample %s; ranges (%s) stay from step %d on",
            len(fake.stages),
            upsample,
            ranges,
            frozen_from + 1,
        )
    if crops_BHWC is not None:
        fake.set_ranges(observe_ranges(model, _batches(crops_BHWC, world)))
        copy_from_main((parameter.data for parameter in fake.log_steps.values()), world)
    fake.attach()
    return Quantizing(fake, upsample, ranges, frozen_from, world)


def _batches(crops_BHWC: Tensor, world: World) -> Iterable[Tensor]:
    return (to_float(crops.to(world.device)) for crops in crops_BHWC.split(_CROPS_PER_BATCH))
