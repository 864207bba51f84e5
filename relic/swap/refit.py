"""Refit one convolution on the activations of a set of crops, and choose the shift of the ReLU before it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from relic.codec.model import ConvLayer
from relic.swap.least_squares import (
    NormalEquations,
    Phase,
    PredictionError,
    num_features,
    phases_of,
    sample_rows,
    solve_ridge,
    write_layer,
)

_SHIFTS = range(7)
_FIRST_SHIFT = 3
_RIDGES = (1e-4, 1e-3, 1e-2)
_MULTIPLICATIONS = 5e9
"""Multiplications for the normal equations of one phase. It decides the number of rows of small layers."""
_ROWS_PER_WEIGHT = 20
"""Rows per unknown, if the crops have that many. It decides the number of rows of large layers."""
_LEAST_GAIN = 1e-4
"""Another k must reduce the relative error by this much. A smaller gain does not justify a different shift."""
_SEARCH_FRACTION = 8
"""k is chosen on one row in 8."""

Chunks = list[Tensor]
"""One activation of all crops, in parts (b, C, h, w) on the CPU. The held-out crops come first."""


class FittedLayer(NamedTuple):
    """What was chosen for a convolution and the ReLU before it."""

    name: str
    """Name of the convolution, for example `g_a.2`."""
    shift: int | None
    """k, the mean input of the ReLU in standard deviations; None if there is no ReLU before the convolution."""
    clipped: float
    """Share of the ReLU's inputs that are below zero."""
    ridge: float
    error: float
    """Relative error at the convolution's output, on held-out crops: 0 is exact, 1 is no better than the mean."""
    bent: bool = False
    """One ReLU before the convolution bends at bright colours."""


@dataclasses.dataclass(kw_only=True)
class Regression:
    """Fits `layer` to compute `goal` from `before`, or from ReLU(`before` + a lift)."""

    layer: ConvLayer
    before: Chunks
    goal: Chunks
    device: torch.device
    num_held_out: int
    weights_B: Tensor
    """What the squared errors of each crop count."""
    advance: Callable[[float], None]
    """Called with the finished share of this layer's work, 0 to 1."""

    def __post_init__(self) -> None:
        self._phases = phases_of(self.layer)
        self._num_crops = sum(map(len, self.before))
        self._errors_by_shift: dict[int, float] = {}

    def fit(self, name: str) -> FittedLayer:
        """Refit the layer on `before`, without a ReLU."""
        return self.fit_lifted(name, None, None)

    def fit_behind_relu(self, name: str) -> tuple[FittedLayer, Tensor]:
        """Choose a lift and refit the layer. Returns the lift, (C,) float64, to add to the bias of the layer before."""
        mean, deviation = moments(self.before)
        shift = self._best_shift(lambda k: k * deviation - mean)
        lift = shift * deviation - mean
        return self.fit_lifted(name, shift, lift), lift

    def _best_shift(self, lift_of: Callable[[int], Tensor]) -> int:
        """Search from k = 3 towards lower error on the held-out crops, until no neighbour is better by _LEAST_GAIN."""

        def error(k: int) -> float:
            if k not in self._errors_by_shift:
                lift = lift_of(k)
                found = PredictionError(solve_ridge(self._sums(lift, _SEARCH_FRACTION), _RIDGES[1]))
                for rows in self._rows(lift, _SEARCH_FRACTION, held_out=True):
                    found.add(rows)
                self._errors_by_shift[k] = found.relative
                self.advance(min(len(self._errors_by_shift) * 0.1, 0.5))
            return self._errors_by_shift[k]

        best = _FIRST_SHIFT
        while True:
            neighbours = [k for k in (best - 1, best + 1) if k in _SHIFTS]
            better = min(neighbours, key=error)
            if not error(better) <= error(best) - _LEAST_GAIN:  # also where an error is not a number
                return best
            best = better

    def fit_lifted(self, name: str, shift: int | None, lift: Tensor | None) -> FittedLayer:
        """Refit the layer on ReLU(`before` + lift). Choose the ridge on the held-out crops, then solve on all crops."""
        equations = self._sums(lift, 1)
        errors = [PredictionError(solve_ridge(equations, ridge)) for ridge in _RIDGES]
        for rows in self._rows(lift, 1, held_out=True):
            for error in errors:
                error.add(rows)
            _add(equations, rows)
        best = min(range(len(errors)), key=lambda number: errors[number].relative)
        write_layer(self.layer, solve_ridge(equations, _RIDGES[best]))
        clipped = 0.0 if lift is None else share_clipped(self.before, lift)
        return FittedLayer(name=name, shift=shift, clipped=clipped, ridge=_RIDGES[best], error=errors[best].relative)

    def _sums(self, lift: Tensor | None, fraction: int) -> list[NormalEquations]:
        """The normal equations of each phase, from the crops that are not held out."""
        targets = self.layer.out_channels
        equations = [NormalEquations(num_features(self.layer, phase), targets, self.device) for phase in self._phases]
        for rows in self._rows(lift, fraction, held_out=False):
            _add(equations, rows)
        return equations

    def _rows(self, lift: Tensor | None, fraction: int, *, held_out: bool) -> Iterator[list[Tensor]]:
        """Yield the rows of each phase, chunk by chunk: one in `fraction` of the rows that the final fit uses."""
        first = 0
        for a, z in zip(self.before, self.goal, strict=True):
            if (first < self.num_held_out) == held_out:
                a_device, z_device = a.to(self.device), z.to(self.device)
                if lift is not None:
                    a_device = relu_of_lifted(a_device, lift)
                weights = self.weights_B[first : first + len(a)]
                yield [
                    sample_rows(phase, a_device, z_device, -(-self._rows_per_crop(phase) // fraction), first, weights)
                    for phase in self._phases
                ]
            first += len(a)

    def _rows_per_crop(self, phase: Phase) -> int:
        return -(-wanted_rows(num_features(self.layer, phase)) // self._num_crops)


def wanted_rows(features: int) -> int:
    """Number of rows for a regression with `features` unknowns, if the crops have that many."""
    return max(int(_MULTIPLICATIONS / features**2), _ROWS_PER_WEIGHT * features)


def _add(equations: list[NormalEquations], rows: list[Tensor]) -> None:
    for equation, of_phase in zip(equations, rows, strict=True):
        equation.add(of_phase)


def relu_of_lifted(z_BCHW: Tensor, lift: Tensor) -> Tensor:
    """ReLU(z + lift), which the layers compute after the swap."""
    return torch.relu(z_BCHW + lift.to(z_BCHW)[:, None, None])


def count_and_mean(chunks: Chunks) -> tuple[int, Tensor]:
    """Number of values per channel, and the mean of every channel, (C,) float64."""
    values = sum(chunk.numel() // chunk.size(1) for chunk in chunks)
    return values, sum((chunk.double().sum((0, 2, 3)) for chunk in chunks), torch.zeros(1)) / values


def moments(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel, (C,) float64."""
    values, mean = count_and_mean(chunks)
    squares = sum(
        ((chunk - mean.float()[:, None, None]).square().double().sum((0, 2, 3)) for chunk in chunks), torch.zeros(1)
    )
    return mean, (squares / values).sqrt()


def share_clipped(chunks: Chunks, lift: Tensor) -> float:
    """Share of the values that ReLU(chunk + lift) sets to zero."""
    clipped = sum(int((chunk < -lift.to(chunk)[:, None, None]).sum()) for chunk in chunks)
    return clipped / sum(chunk.numel() for chunk in chunks)
