"""Refitting a convolution against torch's own least squares on unfolded, and on zero-inserted, inputs."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.model import ConvLayer
from relic.swap.least_squares import (
    NormalEquations,
    PredictionError,
    num_features,
    outputs_of,
    phases_of,
    sample_rows,
    solve_ridge,
    windows_of,
    write_layer,
)

LAYERS: list[ConvLayer] = [
    nn.Conv2d(3, 4, 5, stride=2, padding=2),
    nn.Conv2d(2, 3, 3, padding=1),
    nn.ConvTranspose2d(3, 2, 5, stride=2, padding=2, output_padding=1),
    nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
    nn.ConvTranspose2d(2, 2, 5, stride=3, padding=1, output_padding=2),
]


def fit(layer: ConvLayer, inputs: Tensor, wanted: Tensor, ridge: float, rows: int = 10**6) -> ConvLayer:
    equations = []
    for phase in phases_of(layer):
        equations.append(NormalEquations(num_features(layer, phase), layer.out_channels, torch.device("cpu")))
        for first in range(0, len(inputs), 2):  # in parts
            equations[-1].add(sample_rows(phase, inputs[first : first + 2], wanted[first : first + 2], rows, first))
    write_layer(layer, solve_ridge(equations, ridge))
    return layer


def fresh(layer: ConvLayer) -> ConvLayer:
    """A layer with the same shape and other weights."""
    other = copy.deepcopy(layer)
    other.reset_parameters()
    return other


def dense_features(layer: ConvLayer, inputs: Tensor) -> Tensor:
    """(outputs, C x taps): one row per output, from torch's convolution with unit kernels."""
    probe = fresh(layer).double()
    columns = []
    with torch.no_grad():
        for channel in range(layer.in_channels):
            for place in range(layer.kernel_size[0] * layer.kernel_size[1]):
                probe.weight.zero_()
                assert probe.bias is not None
                probe.bias.zero_()
                row, column = divmod(place, layer.kernel_size[1])
                spot = (channel, 0) if isinstance(layer, nn.ConvTranspose2d) else (0, channel)
                probe.weight[(*spot, row, column)] = 1
                columns.append(probe(inputs.double())[:, 0].flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_a_layer_is_recovered_exactly_borders_included(number: int) -> None:
    torch.manual_seed(number)
    layer = fresh(LAYERS[number])
    inputs = torch.randn(6, layer.in_channels, 8, 10)
    wanted = layer(inputs).detach()
    fitted = fit(fresh(layer), inputs, wanted, ridge=0)
    assert torch.allclose(fitted.weight, layer.weight, atol=1e-5)
    assert torch.allclose(fitted(inputs), wanted, atol=1e-5)


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("ridge", [0.0, 0.03])
def test_the_solution_is_that_of_dense_least_squares(number: int, ridge: float) -> None:
    """Least squares with the ridge as more rows: sqrt(penalty) x identity, target zero, no penalty for the bias."""
    torch.manual_seed(3)
    layer = fresh(LAYERS[number])
    inputs = torch.randn(4, layer.in_channels, 9, 8) + 2
    wanted = torch.randn_like(layer(inputs))
    features = dense_features(layer, inputs)
    penalties = []
    variances = []
    for phase in phases_of(layer):
        height, width = outputs_of(phase, wanted).shape[2:]
        seen = windows_of(phase, inputs, height, width).permute(0, 2, 3, 1, 4, 5).double()
        variances.append(float(seen.flatten(0, 2).flatten(1).var(0, correction=0).mean()))
    for phase in phases_of(layer):
        rows = outputs_of(phase, wanted)[:, 0].numel()
        taps = torch.zeros(layer.kernel_size)
        for row in phase[0].taps:
            taps[row, list(phase[1].taps)] = 1
        penalties.append(taps.flatten().repeat(layer.in_channels).double() * ridge * max(variances) * rows)
    total = torch.stack(penalties).sum(0)
    matrix = torch.cat([features, torch.ones(len(features), 1).double()], dim=1)
    below = torch.cat([total.sqrt().diag(), torch.zeros(len(total), 1).double()], dim=1)
    targets = torch.cat([wanted.double().permute(0, 2, 3, 1).flatten(0, 2), torch.zeros(len(total), wanted.size(1))])
    expected = torch.linalg.lstsq(torch.cat([matrix, below]), targets).solution
    fitted = fit(fresh(layer), inputs, wanted, ridge)
    weight = fitted.weight if isinstance(layer, nn.ConvTranspose2d) else fitted.weight.transpose(0, 1)
    found = weight.transpose(1, 2).transpose(2, 3).flatten(0, 2)  # (C x taps, O)
    assert torch.allclose(found.double(), expected[:-1], atol=1e-5)
    assert fitted.bias is not None and torch.allclose(fitted.bias.double(), expected[-1], atol=1e-5)


def test_phases_of_a_five_by_five_kernel_take_a_quarter_of_the_taps() -> None:
    layer = LAYERS[2]
    assert [num_features(layer, phase) // layer.in_channels for phase in phases_of(layer)] == [9, 6, 6, 4]


def test_windows_are_what_unfold_sees() -> None:
    layer = LAYERS[0]
    inputs = torch.randn(2, 3, 8, 12)
    (phase,) = phases_of(layer)
    seen = windows_of(phase, inputs, 4, 6).permute(0, 1, 4, 5, 2, 3).reshape(2, 75, 24)
    assert torch.equal(seen, F.unfold(inputs, 5, padding=2, stride=2))


def test_places_are_distinct_and_a_larger_sample_holds_all() -> None:
    layer = LAYERS[0]
    (phase,) = phases_of(layer)
    inputs = torch.zeros(3, 3, 16, 20)
    wanted = torch.arange(3 * 8 * 10).reshape(3, 1, 8, 10).float()
    for rows in (7, 80, 500):
        drawn = sample_rows(phase, inputs, wanted, rows, first_crop=5)[:, -2]
        count = min(rows, 80)
        assert len(drawn) == 3 * count and len(drawn.unique()) == 3 * count
        assert [int(((drawn >= 80 * crop) & (drawn < 80 * (crop + 1))).sum()) for crop in range(3)] == [count] * 3


def test_relative_error_is_one_for_the_mean_and_none_for_the_truth() -> None:
    torch.manual_seed(0)
    layer = fresh(LAYERS[2])
    inputs = torch.randn(4, 3, 6, 6)
    phases = phases_of(layer)
    for wanted, expected in ((layer(inputs).detach(), 0.0), (torch.randn(4, 2, 12, 12), 1.0)):
        rows = [sample_rows(phase, inputs, wanted, 1000, 0) for phase in phases]
        equations = [NormalEquations(num_features(layer, phase), 2, torch.device("cpu")) for phase in phases]
        for equation, of_phase in zip(equations, rows, strict=True):
            equation.add(of_phase)
        # With a huge ridge only the bias remains, which is the mean.
        error = PredictionError(solve_ridge(equations, 1e-9 if expected == 0 else 1e12))
        error.add(rows)
        assert error.relative == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("number", [0, 2])
def test_a_crop_of_weight_three_counts_as_three_crops(number: int) -> None:
    torch.manual_seed(2)
    layer = fresh(LAYERS[number])
    inputs = torch.randn(3, layer.in_channels, 8, 10)
    wanted = torch.randn_like(layer(inputs))
    fits, errors = [], []
    for copies, weights in (([0, 1, 1, 1, 2], None), ([0, 1, 2], torch.tensor([1.0, 3.0, 1.0]))):
        rows = [sample_rows(phase, inputs[copies], wanted[copies], 10**6, 0, weights) for phase in phases_of(layer)]
        equations = []
        for phase, of_phase in zip(phases_of(layer), rows, strict=True):
            equations.append(NormalEquations(num_features(layer, phase), layer.out_channels, torch.device("cpu")))
            equations[-1].add(of_phase)
        fits.append(solve_ridge(equations, 0.01))
        error = PredictionError(fits[-1])
        error.add(rows)
        errors.append(error.relative)
    assert all(map(torch.allclose, fits[0].weights, fits[1].weights)) and torch.allclose(fits[0].bias, fits[1].bias)
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
