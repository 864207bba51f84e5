"""Refit a convolution, plain or transposed, by ridge regression: normal equations in float64, exact at the borders.

A transposed convolution of stride s is equal to s x s plain convolutions. Each computes the outputs of one phase (row
and column modulo s) from some of the kernel's taps: 9, 6, 6 and 4 taps for a 5x5 kernel of stride 2. An input with
inserted zeros would need 25 taps for every output. The phases share only the bias.

Shapes: a_BCHW the layer's input, z_BOhw its output; a phase uses windows (B, C, h, w, rows, columns) of `a`.
F: unknowns per output channel in one phase, C x rows x columns.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.model import ConvLayer

_GOLDEN = 0.6180339887


class Axis(NamedTuple):
    """One direction of a phase: output `first` + j x `step` uses len(taps) inputs from j x `stride` + `start` on."""

    taps: tuple[int, ...]
    """Positions in the kernel, in the order of the inputs they multiply."""
    start: int
    stride: int
    first: int
    step: int


Phase = tuple[Axis, Axis]


def phases_of(layer: ConvLayer) -> list[Phase]:
    """The plain convolutions that a layer consists of: one, or one per phase of a transposed convolution."""
    assert not isinstance(layer.padding, str)
    axes: list[list[Axis]] = []
    for kernel, stride, padding in zip(layer.kernel_size, layer.stride, layer.padding, strict=True):
        if isinstance(layer, nn.Conv2d):
            axes.append([Axis(tuple(range(kernel)), -padding, stride, 0, 1)])
            continue
        axes.append([])
        for phase in range(stride):
            # Output o uses input i with tap o + padding - stride i, so a later input has an earlier tap.
            taps = tuple(tap for tap in reversed(range(kernel)) if (phase + padding - tap) % stride == 0)
            axes[-1].append(Axis(taps, (phase + padding - taps[0]) // stride, 1, phase, stride))
    return [(row, column) for row in axes[0] for column in axes[1]]


def num_features(layer: ConvLayer, phase: Phase) -> int:
    """F: the number of inputs per output of a phase."""
    return layer.in_channels * len(phase[0].taps) * len(phase[1].taps)


def outputs_of(phase: Phase, z_BOhw: Tensor) -> Tensor:
    """The outputs of a phase."""
    rows, columns = phase
    return z_BOhw[:, :, rows.first :: rows.step, columns.first :: columns.step]


def windows_of(phase: Phase, a_BCHW: Tensor, height: int, width: int) -> Tensor:
    """The inputs of `height` x `width` outputs of a phase, zero outside: a view (B, C, h, w, rows, columns)."""
    padding: list[int] = []
    for axis, side, count in zip(phase, a_BCHW.shape[2:], (height, width), strict=True):
        end = axis.start + (count - 1) * axis.stride + len(axis.taps)
        padding = [-axis.start, end - side, *padding]
    rows, columns = phase
    view = F.pad(a_BCHW, padding)
    return view.unfold(2, len(rows.taps), rows.stride).unfold(3, len(columns.taps), columns.stride)


def sample_rows(
    phase: Phase, a_BCHW: Tensor, z_BOhw: Tensor, rows_per_crop: int, first_crop: int, weights_B: Tensor | None = None
) -> Tensor:
    """Rows (inputs, targets, 1) at positions spread evenly over each crop: (rows, F + O + 1) float64.

    `weights_B`: what the squared errors of each crop count, by default 1. Its rows are multiplied by the square root.
    `first_crop` is the number of the first crop. The positions follow the golden ratio and start at a different place
    in each crop. So the rows of a few crops contain border and inner positions in the right proportion.
    """
    targets = outputs_of(phase, z_BOhw)
    crops, _, height, width = targets.shape
    count = min(rows_per_crop, height * width)
    starts = torch.arange(first_crop, first_crop + crops) * 7919
    places = (starts[:, None] + torch.arange(count) * _coprime_step(height * width)) % (height * width)
    crop, row, column = torch.arange(crops)[:, None], places // width, places % width
    # An index on both sides of a slice puts the indexed dimensions first: (crops, count, ...).
    features = windows_of(phase, a_BCHW, height, width)[crop, :, row, column].flatten(0, 1).flatten(1)
    wanted = targets[crop, :, row, column].flatten(0, 1)
    num_features, num_targets = features.size(1), wanted.size(1)
    # The assignment converts and copies in one pass, which saves a copy of data that is mostly not in the cache.
    rows = features.new_empty(len(features), num_features + num_targets + 1, dtype=torch.float64)
    rows[:, :num_features], rows[:, num_features:-1], rows[:, -1] = features, wanted, 1
    if weights_B is not None:
        rows *= weights_B.to(rows).sqrt().repeat_interleave(count)[:, None]
    return rows


def _coprime_step(places: int) -> int:
    """A step near `places` times the golden ratio with no common divisor, so that it visits each place exactly once."""
    step = max(1, round(places * _GOLDEN))
    return next(s for s in range(step, step + places + 1) if math.gcd(s, places) == 1)


class NormalEquations:
    """The sums of products that a linear regression with an intercept needs, float64."""

    def __init__(self, num_features: int, num_targets: int, device: torch.device) -> None:
        side = num_features + num_targets + 1
        self._num_features = num_features
        self._sums = torch.zeros(side, side, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows (features, targets, 1)."""
        self._sums += _products(rows)

    @property
    def rows(self) -> float:
        """The number of rows; with weights, their sum."""
        return float(self._sums[-1, -1])

    @property
    def gram(self) -> Tensor:
        """Products of features with features, (F, F)."""
        return self._sums[: self._num_features, : self._num_features]

    @property
    def wanted(self) -> Tensor:
        """Products of features with targets and, in the last column, the sums of the features, (F, O + 1)."""
        return self._sums[: self._num_features, self._num_features :]

    @property
    def target_sums(self) -> Tensor:
        """Sums of the targets, (O,)."""
        return self._sums[-1, self._num_features : -1]

    @property
    def mean_variance(self) -> float:
        """Mean over the features of their variance."""
        return float((self.gram.diagonal() / self.rows - (self.wanted[:, -1] / self.rows) ** 2).mean())


def _products(rows: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows.T @ rows
    # numpy notices that both factors are the same matrix and computes half of the products; torch computes all.
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)


class Affine(NamedTuple):
    """targets ~ features @ weights[phase] + bias, float64."""

    weights: list[Tensor]
    """(F, O) per phase."""
    bias: Tensor
    """(O,), shared by the phases."""


def solve_ridge(equations: Sequence[NormalEquations], ridge: float) -> Affine:
    """Minimise squared error + penalty x squared weights over all phases together; the bias is not penalised.

    The penalty of a phase is `ridge` x its number of rows x the largest mean variance of a phase's features. So its
    effect depends neither on the number of rows nor on the mean of the features. With the bias eliminated, each phase
    needs one Cholesky factorisation. The bias then follows from all phases (a Schur complement). Raises
    torch.linalg.LinAlgError if the equations are singular.
    """
    variance = max(equation.mean_variance for equation in equations)
    partial = []
    weight_of_bias, weighted_bias = 0.0, torch.zeros_like(equations[0].target_sums)
    for equation in equations:
        matrix = equation.gram.clone()
        matrix.diagonal().add_(max(ridge * variance, torch.finfo(torch.float32).tiny) * equation.rows)
        solved = torch.cholesky_solve(equation.wanted, torch.linalg.cholesky(matrix))
        of_targets, of_ones = solved[:, :-1], solved[:, -1]
        feature_sums = equation.wanted[:, -1]
        weight_of_bias += equation.rows - float(feature_sums @ of_ones)
        weighted_bias += equation.target_sums - feature_sums @ of_targets
        partial.append((of_targets, of_ones))
    bias = weighted_bias / weight_of_bias
    return Affine([of_targets - of_ones[:, None] * bias for of_targets, of_ones in partial], bias)


def write_layer(layer: ConvLayer, fitted: Affine) -> None:
    """Write the regression's weights into the layer's kernel and bias, rounded to the layer's dtype."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    weight = layer.weight.data.transpose(0, 1) if transposed else layer.weight.data  # (O, C, rows, columns)
    for (rows, columns), weights in zip(phases_of(layer), fitted.weights, strict=True):
        values = weights.T.reshape(weight.size(0), weight.size(1), len(rows.taps), len(columns.taps)).to(weight)
        grid = torch.tensor(rows.taps)[:, None], torch.tensor(columns.taps)
        weight[:, :, grid[0], grid[1]] = values
    assert layer.bias is not None
    layer.bias.data.copy_(fitted.bias)


class PredictionError:
    """The error of a regression on rows that are added in parts."""

    def __init__(self, fitted: Affine) -> None:
        self._fitted = fitted
        self._rows = 0.0
        self._squared = torch.zeros_like(fitted.bias)
        self._sum, self._square_sum = torch.zeros_like(fitted.bias), torch.zeros_like(fitted.bias)

    def add(self, rows: Sequence[Tensor]) -> None:
        """Add rows (features, targets, 1), one tensor per phase."""
        for weights, of_phase in zip(self._fitted.weights, rows, strict=True):
            features, targets, ones = of_phase[:, : len(weights)], of_phase[:, len(weights) : -1], of_phase[:, -1:]
            self._rows += float(ones.square().sum())
            self._squared += (features @ weights + ones * self._fitted.bias - targets).square().sum(0)
            self._sum += (ones * targets).sum(0)
            self._square_sum += targets.square().sum(0)

    @property
    def relative(self) -> float:
        """Squared error divided by the squared deviation of the targets from their channel's mean; 0 is exact."""
        deviation = float((self._square_sum - self._sum.square() / self._rows).sum())
        return float(self._squared.sum()) / max(deviation, torch.finfo(torch.float64).tiny)
