"""Counts how many inputs of a codec's ReLU layers are below zero: the fewer, the closer the layers are to linear."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ReluCounts(NamedTuple):
    """Numbers of inputs of ReLU layers."""

    below_zero: int
    inputs: int


class ReluInputs:
    """Counts the inputs of all ReLU layers of a model, and those below zero. Counting does not wait for the device.

    Several threads may run the model at once. Only what a thread computes inside `counted` is counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._below = torch.zeros((), dtype=torch.int64)
        self._inputs = 0
        for layer in model.modules():
            if isinstance(layer, nn.ReLU):
                layer.register_forward_pre_hook(self._count)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what this thread computes in this block."""
        self._thread.counts = True
        try:
            yield
        finally:
            self._thread.counts = False

    def _count(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if getattr(self._thread, "counts", False):
            below = (inputs[0] < 0).sum()
            with self._lock:
                self._below = self._below.to(below.device) + below
                self._inputs += inputs[0].numel()

    @property
    def counts(self) -> ReluCounts:
        """Of everything counted so far."""
        return ReluCounts(int(self._below), self._inputs)
