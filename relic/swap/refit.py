"""Refit one convolution on the activations of a set of crops, and choose how far the ReLU before it is lifted."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from relic.swap.least_squares import (
    Layer,
    NormalEquations,
    Phase,
    PredictionError,
    num_features,
    phases_of,
    sample,
    solve_ridge,
    write_layer,
)

HELD_BACK = 4
"""One crop in so many is held back."""
_SHIFTS = range(7)
_FIRST_SHIFT = 3
_RIDGES = (1e-4, 1e-3, 1e-2)
_MULTIPLICATIONS = 5e9
"""Of one phase's normal equations: sets the rows of small layers."""
_ROWS_A_WEIGHT = 20
"""Rows for each unknown, where the crops have as many: sets the rows of large layers."""
_WORTHWHILE = 1e-4
"""Relative error that another k must save: less is not worth a ReLU that clips less, or a signal it maims."""
_SCOUTING = 8
"""k is chosen on one row in so many."""

Chunks = list[Tensor]
"""An activation of all crops, (b, C, h, w) each, on the CPU; those held back come first."""


class FittedLayer(NamedTuple):
    """What was chosen for a convolution and the ReLU before it."""

    name: str
    """Of the convolution, as `g_a.2`."""
    shift: int | None
    """k, the ReLU's mean input in standard deviations; None where no ReLU stands before the convolution."""
    clipped: float
    """Share of the ReLU's inputs that are below zero."""
    ridge: float
    error: float
    """At the convolution's output, on held-back crops, relative: 0 is exact, 1 no better than the mean."""


class Regression:
    """`layer` is to make `goal` of `before`, or of ReLU(`before` + a lift)."""

    def __init__(
        self, layer: Layer, before: Chunks, goal: Chunks, *, device: torch.device, advance: Callable[[float], None]
    ) -> None:
        """`advance` is told the share of this layer's work that is done."""
        self._layer, self._before, self._goal = layer, before, goal
        self._device, self._advance = device, advance
        self._phases = phases_of(layer)
        self._num_crops = sum(map(len, before))
        self._tried: dict[int, float] = {}

    def fit(self, name: str) -> FittedLayer:
        """Refit the layer on `before` as it is."""
        return self._fit(name, None, None)

    def fit_behind_relu(self, name: str) -> tuple[FittedLayer, Tensor]:
        """Choose a lift and refit the layer; returns the lift, (C,) float64, for the bias of the layer before."""
        mean, deviation = moments(self._before)
        shift = self._walk(lambda k: k * deviation - mean)
        lift = shift * deviation - mean
        return self._fit(name, shift, lift), lift

    def _walk(self, lift_of: Callable[[int], Tensor]) -> int:
        """From the middle to the k where neither neighbour's error on the crops held back is much lower."""

        def error(k: int) -> float:
            if k not in self._tried:
                lift = lift_of(k)
                found = PredictionError(solve_ridge(self._sums(lift, _SCOUTING), _RIDGES[1]))
                for rows in self._rows(lift, _SCOUTING, held_back=True):
                    found.add(rows)
                self._tried[k] = found.relative
                self._advance(min(len(self._tried) * 0.1, 0.5))
            return self._tried[k]

        best = _FIRST_SHIFT
        while True:
            neighbours = [k for k in (best - 1, best + 1) if k in _SHIFTS]
            better = min(neighbours, key=error)
            if error(better) > error(best) - _WORTHWHILE:
                return best
            best = better

    def _fit(self, name: str, shift: int | None, lift: Tensor | None) -> FittedLayer:
        """Choose the ridge on the crops held back, then solve with these too."""
        equations = self._sums(lift, 1)
        errors = [PredictionError(solve_ridge(equations, ridge)) for ridge in _RIDGES]
        for rows in self._rows(lift, 1, held_back=True):
            for error in errors:
                error.add(rows)
            _add(equations, rows)
        best = min(range(len(errors)), key=lambda number: errors[number].relative)
        write_layer(self._layer, solve_ridge(equations, _RIDGES[best]))
        self._advance(1)
        clipped = 0.0 if lift is None else share_clipped(self._before, lift)
        return FittedLayer(name, shift, clipped, _RIDGES[best], errors[best].relative)

    def _sums(self, lift: Tensor | None, fraction: int) -> list[NormalEquations]:
        """Of the crops that are not held back."""
        targets = self._layer.out_channels
        equations = [NormalEquations(num_features(self._layer, phase), targets, self._device) for phase in self._phases]
        for rows in self._rows(lift, fraction, held_back=False):
            _add(equations, rows)
        return equations

    def _rows(self, lift: Tensor | None, fraction: int, *, held_back: bool) -> Iterator[list[Tensor]]:
        """Rows of each phase, chunk by chunk: one in `fraction` of those that a fit takes."""
        first = 0
        for a, z in zip(self._before, self._goal, strict=True):
            if (first < self._num_crops // HELD_BACK) == held_back:
                a_device, z_device = a.to(self._device), z.to(self._device)
                if lift is not None:
                    a_device = lifted(a_device, lift)
                yield [
                    sample(phase, a_device, z_device, -(-self._rows_a_crop(phase) // fraction), first)
                    for phase in self._phases
                ]
            first += len(a)

    def _rows_a_crop(self, phase: Phase) -> int:
        return -(-wanted_rows(num_features(self._layer, phase)) // self._num_crops)


def wanted_rows(features: int) -> int:
    """Rows that a regression with so many unknowns is given where the crops have them."""
    return max(int(_MULTIPLICATIONS / features**2), _ROWS_A_WEIGHT * features)


def _add(equations: list[NormalEquations], rows: list[Tensor]) -> None:
    for equation, of_phase in zip(equations, rows, strict=True):
        equation.add(of_phase)


def lifted(z_BCHW: Tensor, lift: Tensor) -> Tensor:
    """ReLU(z + lift), as the layers will compute it."""
    return torch.relu(z_BCHW + lift.to(z_BCHW)[:, None, None])


def moments(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel, (C,) float64."""
    values = sum(chunk.numel() // chunk.size(1) for chunk in chunks)
    mean = sum((chunk.double().sum((0, 2, 3)) for chunk in chunks), torch.zeros(1)) / values
    squares = sum(
        ((chunk - mean.float()[:, None, None]).square().double().sum((0, 2, 3)) for chunk in chunks), torch.zeros(1)
    )
    return mean, (squares / values).sqrt()


def share_clipped(chunks: Chunks, lift: Tensor) -> float:
    """Share of the values that ReLU(chunk + lift) cuts off."""
    clipped = sum(int((chunk < -lift.to(chunk)[:, None, None]).sum()) for chunk in chunks)
    return clipped / sum(chunk.numel() for chunk in chunks)
