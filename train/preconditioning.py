"""Let the optimizer move kernels in coordinates where their inputs are centred, decorrelated and of one size.

A calibrated codec's activations lie standard deviations above zero and hang together, so a step of one size in every
weight is mostly a shift of all outputs, and that is what bounds its size. K-FAC (Martens and Grosse 2015, arXiv
1503.05671; for convolutions Grosse and Martens 2016, arXiv 1602.01407) undoes it with the inputs' covariance. Here that
is a product of the channels' and the taps' covariances, two small matrices, taken once, where the run starts; Adam sees
the gradient in these coordinates, and its step is carried back.

Shapes: a kernel is seen as (O, C, T): outputs, inputs, taps (rows x columns of the kernel).
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import medians_of, round_about_medians
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.swap.least_squares import Layer, phases_of, sample_rows

NUM_CROPS = 16
"""Crops that the covariances are taken of, at most."""
_ROWS_A_CROP = 256
_RIDGE = 1e-3
"""Of a covariance's mean eigenvalue. From 1e-4 to 1e-2, a thousand images of training ended alike."""
_REACH = 3.0
"""A step of the learning rate in every weight, of random signs, moves an output by so many times that share of its
standard deviation: at 3 kernels and densities learn best at about the same rate (measured on the embedded codec)."""


class Coordinates(NamedTuple):
    """Of one convolution, float32 on the model's device."""

    mean: Tensor
    """(C,) of the inputs."""
    channels: Tensor
    """(C, C): inverse square root of the inputs' covariance."""
    taps: Tensor
    """(T, T): the same of the taps, on inputs whose channels are decorrelated."""
    scale: Tensor
    """(O,): standard deviation of the outputs, over the square root of the inputs that make one of them."""

    def carry(self, kernel_OCT: Tensor) -> Tensor:
        """A kernel's change in these coordinates as one of its weights; a gradient the other way."""
        return self.scale[:, None, None] * (self.channels @ kernel_OCT @ self.taps)


def measure_coordinates(layer: Layer, a_BCHW: Tensor, z_BOhw: Tensor) -> Coordinates:
    """`a`: inputs of `layer`, `z`: its outputs. Covariances and roots are computed in float64."""
    mean = a_BCHW.mean((0, 2, 3))
    centred = (a_BCHW - mean[:, None, None]).transpose(0, 1).flatten(1).double()
    channels = _inverse_root(centred @ centred.T / centred.size(1))
    num_taps = math.prod(layer.kernel_size)
    taps = channels.new_zeros(num_taps, num_taps)
    phases = phases_of(layer)
    for phase in phases:
        rows, columns = phase
        numbers = torch.tensor([row * layer.kernel_size[1] + column for row in rows.taps for column in columns.taps])
        windows = sample_rows(phase, a_BCHW, z_BOhw, _ROWS_A_CROP, 0)[:, : layer.in_channels * len(numbers)]
        windows = windows.unflatten(1, (layer.in_channels, -1)) - mean[:, None]
        decorrelated = (channels @ windows).transpose(0, 1).flatten(0, 1)
        # Taps of different phases never meet in one output.
        taps[numbers[:, None], numbers] = _inverse_root(decorrelated.T @ decorrelated / len(decorrelated))
    inputs_of_an_output = layer.in_channels * num_taps / len(phases)
    deviation = z_BOhw.std((0, 2, 3))
    # An output that never varies has to be able to learn all the same.
    scale = _REACH * deviation.clamp(min=_RIDGE * float(deviation.mean())) / math.sqrt(inputs_of_an_output)
    return Coordinates(*(tensor.float() for tensor in (mean, channels, taps, scale)))


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    floor = max(_RIDGE * float(values.mean()), torch.finfo(torch.float32).tiny)
    output: Tensor = vectors * (values.clamp(min=0) + floor).rsqrt() @ vectors.T
    return output


class Preconditioning:
    """Gives the optimizer a stand-in for every trained kernel: zero, but while the optimizer steps.

    `take_gradients`, then the optimizer's step, then `move_kernels`. A kernel that moves takes its bias along, so that
    the mean of its outputs stays where it is (for a transposed convolution: their mean over the phases).
    """

    def __init__(self, model: FactorizedPrior) -> None:
        """`model`: on its device, in the memory format it is trained in, what is not trained frozen."""
        self._model = model
        self._layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, Layer) and layer.weight.requires_grad
        }
        self._stand_ins = {name: nn.Parameter(torch.zeros_like(layer.weight)) for name, layer in self._layers.items()}
        self._coordinates: dict[str, Coordinates] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer is given: the model's trained parameters, with stand-ins in the kernels' places."""
        found = {f"{name}.weight": stand_in for name, stand_in in self._stand_ins.items()}
        return [found.get(name, each) for name, each in self._model.named_parameters() if each.requires_grad]

    @torch.no_grad()
    def measure(self, images_BHWC: Tensor) -> None:
        """Take the coordinates from the model as it is now, on the first NUM_CROPS of `images` (uint8)."""
        device = next(self._model.parameters()).device
        names = {layer: name for name, layer in self._layers.items()}
        with without_tf32():
            for layer, a, z in _activations(self._model, to_float(images_BHWC[:NUM_CROPS].to(device))):
                if layer in names:
                    self._coordinates[names[layer]] = measure_coordinates(layer, a, z)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the kernels' gradients into their stand-ins; biases keep theirs."""
        for name, layer in self._layers.items():
            assert layer.weight.grad is not None and layer.bias is not None and layer.bias.grad is not None
            coordinates, stand_in = self._coordinates[name], self._stand_ins[name]
            gradient = _as_OCT(layer, layer.weight.grad) - _shares(layer, coordinates) * layer.bias.grad[:, None, None]
            stand_in.grad = _as_kernel(layer, coordinates.carry(gradient))
            layer.weight.grad = None

    @torch.no_grad()
    def move_kernels(self) -> None:
        """Carry what the optimizer made of the stand-ins back to the kernels; of a step it skipped, nothing."""
        for name, layer in self._layers.items():
            assert layer.bias is not None
            coordinates, stand_in = self._coordinates[name], self._stand_ins[name]
            change = coordinates.carry(_as_OCT(layer, stand_in))
            layer.weight.add_(_as_kernel(layer, change))
            layer.bias.sub_((change * _shares(layer, coordinates)).sum((1, 2)))
            stand_in.zero_()

    def tensors(self) -> Iterator[Tensor]:
        """All that `measure` found, in place."""
        for coordinates in self._coordinates.values():
            yield from coordinates

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: coordinates._asdict() for name, coordinates in self._coordinates.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, layer in self._layers.items():
            self._coordinates[name] = Coordinates(**{key: each.to(layer.weight) for key, each in state[name].items()})


def _activations(model: FactorizedPrior, x_BCHW: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Every convolution with its inputs and outputs; the decoder's are made of rounded latents."""
    medians = medians_of(model)
    values = x_BCHW
    for transform in (model.g_a, model.g_s):
        for layer in transform:
            before, values = values, layer(values)
            if isinstance(layer, Layer):
                yield layer, before, values
        values = round_about_medians(values, medians) if transform is model.g_a else values


def _shares(layer: Layer, coordinates: Coordinates) -> Tensor:
    """(C, 1): what a change of 1 in any tap adds to the mean of the outputs."""
    return coordinates.mean[:, None] / len(phases_of(layer))


def _as_OCT(layer: Layer, kernel: Tensor) -> Tensor:
    return (kernel.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel).flatten(2)


def _as_kernel(layer: Layer, kernel_OCT: Tensor) -> Tensor:
    kernel = kernel_OCT.unflatten(2, layer.kernel_size)
    output: Tensor = kernel.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel
    return output
