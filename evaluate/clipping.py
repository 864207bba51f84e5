"""How much of its input a codec's ReLU layers cut off: near zero they are nearly linear."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ReluInputs:
    """Counts the inputs of all ReLU layers of a model, and those below zero, without waiting for the device."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, nn.ReLU)]
        self._below = torch.zeros((), dtype=torch.int64)
        self._inputs = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is computed in this block."""
        handles = [layer.register_forward_pre_hook(self._count) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._below = self._below.to(inputs[0].device) + (inputs[0] < 0).sum()
        self._inputs += inputs[0].numel()

    @property
    def counts(self) -> tuple[int, int]:
        """Inputs below zero, and all inputs."""
        return int(self._below), self._inputs
