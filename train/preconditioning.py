"""Preconditioning: the optimizer updates kernels in coordinates in which their inputs are centred and whitened.

The activations of a calibrated codec have a mean of several standard deviations and are correlated. So an update of
equal size in every weight mostly shifts all outputs, and this limits the learning rate. K-FAC (Martens and Grosse 2015,
arXiv 1503.05671; for convolutions Grosse and Martens 2016, arXiv 1602.01407) corrects it with the covariance of the
inputs. Here the covariance is approximated by a product of two small matrices, one over the channels and one over the
taps. Both are measured once, at the start of the run. Adam receives the gradient in these coordinates, and its step is
transformed back.

Shapes: a kernel is viewed as (O, C, T): outputs, inputs, taps (rows x columns of the kernel).
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import medians_of, round_about_medians
from relic.codec.model import ConvLayer
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.swap.least_squares import phases_of, sample_rows

NUM_CROPS = 16
"""The largest number of crops that the covariances are measured on."""
_ROWS_PER_CROP = 256
_RIDGE = 1e-3
"""Times the mean eigenvalue of a covariance. Values from 1e-4 to 1e-2 gave equal results after 1,000 images."""
_REACH = 3.0
"""A step of size lr and random sign in every weight changes an output by 3 lr times its standard deviation. With 3 the
kernels and the densities learn best at about the same learning rate (measured on the embedded codec)."""


class Coordinates(NamedTuple):
    """The coordinates of one convolution, float32 on the model's device."""

    mean: Tensor
    """(C,): mean of the inputs."""
    channels: Tensor
    """(C, C): inverse square root of the inputs' covariance over the channels."""
    taps: Tensor
    """(T, T): the same over the taps, for inputs whose channels are decorrelated."""
    scale: Tensor
    """(O,): _REACH times the standard deviation of the outputs, divided by the square root of the inputs per output."""

    def transform(self, kernel_OCT: Tensor, out: Tensor | None = None) -> Tensor:
        """A change in these coordinates as a change of the weights, or a gradient of the weights in these coordinates.

        The transform is the same in both directions because `channels` and `taps` are symmetric.
        """
        return torch.mul(self.scale[:, None, None], self.channels @ kernel_OCT @ self.taps, out=out)


def measure_coordinates(layer: ConvLayer, a_BCHW: Tensor, z_BOhw: Tensor) -> Coordinates:
    """Measure the coordinates of `layer` from its inputs `a` and outputs `z`. Computes in float64."""
    mean = a_BCHW.mean((0, 2, 3))
    centred = (a_BCHW - mean[:, None, None]).transpose(0, 1).flatten(1).double()
    channels = _inverse_root(centred @ centred.T / centred.size(1))
    num_taps = math.prod(layer.kernel_size)
    taps = channels.new_zeros(num_taps, num_taps)
    phases = phases_of(layer)
    for phase in phases:
        rows, columns = phase
        numbers = torch.tensor([row * layer.kernel_size[1] + column for row in rows.taps for column in columns.taps])
        windows = sample_rows(phase, a_BCHW, z_BOhw, _ROWS_PER_CROP, 0)[:, : layer.in_channels * len(numbers)]
        windows = windows.unflatten(1, (layer.in_channels, -1)) - mean[:, None]
        decorrelated = (channels @ windows).transpose(0, 1).flatten(0, 1)
        # No output uses taps of two phases, so their covariance is not needed.
        taps[numbers[:, None], numbers] = _inverse_root(decorrelated.T @ decorrelated / len(decorrelated))
    inputs_of_an_output = layer.in_channels * num_taps / len(phases)
    deviation = z_BOhw.std((0, 2, 3))
    # The lower limit lets an output learn that does not vary on these crops.
    scale = _REACH * deviation.clamp(min=_RIDGE * float(deviation.mean())) / math.sqrt(inputs_of_an_output)
    return Coordinates(*(tensor.float() for tensor in (mean, channels, taps, scale)))


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    floor = max(_RIDGE * float(values.mean()), torch.finfo(torch.float32).tiny)
    output: Tensor = vectors * (values.clamp(min=0) + floor).rsqrt() @ vectors.T
    return output


class Preconditioning:
    """Gives the optimizer a proxy parameter for every trained kernel. A proxy is zero except during the step.

    Call `take_gradients`, then the optimizer's step, then `move_kernels`. When a kernel changes, its bias is changed so
    that the mean of the outputs stays the same (for a transposed convolution: the mean over the phases).
    """

    def __init__(self, model: FactorizedPrior) -> None:
        """`model`: on its device, in the memory format of training, with untrained parameters frozen."""
        self._model = model
        self._layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, ConvLayer) and layer.weight.requires_grad
        }
        self._phases = {name: len(phases_of(layer)) for name, layer in self._layers.items()}
        self._proxies = {name: nn.Parameter(torch.zeros_like(layer.weight)) for name, layer in self._layers.items()}
        self._coordinates: dict[str, Coordinates] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters for the optimizer: the model's trained parameters, with proxies instead of the kernels."""
        found = {f"{name}.weight": proxy for name, proxy in self._proxies.items()}
        return [found.get(name, each) for name, each in self._model.named_parameters() if each.requires_grad]

    @torch.no_grad()
    def measure(self, images_BHWC: Tensor) -> None:
        """Measure the coordinates of the model as it is now, on the first NUM_CROPS of `images` (uint8)."""
        device = next(self._model.parameters()).device
        names = {layer: name for name, layer in self._layers.items()}
        with without_tf32():
            for layer, a, z in _activations(self._model, to_float(images_BHWC[:NUM_CROPS].to(device))):
                if layer in names:
                    self._coordinates[names[layer]] = measure_coordinates(layer, a, z)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the gradients of the kernels to their proxies. Biases keep their gradients."""
        for name, layer in self._layers.items():
            if layer.weight.grad is None:  # an encoder that stays as it is
                continue
            assert layer.bias is not None and layer.bias.grad is not None
            coordinates, proxy = self._coordinates[name], self._proxies[name]
            of_kernel, of_bias = _as_OCT(layer, layer.weight.grad), layer.bias.grad[:, None, None]
            # If a weight changes by 1, the mean of the outputs changes by this mean, divided by the number of phases.
            gradient = torch.addcmul(of_kernel, coordinates.mean[:, None], of_bias, value=-1 / self._phases[name])
            # In the proxy's memory format: with another one, a fused optimizer refuses the gradient.
            proxy.grad = torch.empty_like(proxy)
            coordinates.transform(gradient, out=_as_OCT(layer, proxy.grad))
            layer.weight.grad = None

    @torch.no_grad()
    def move_kernels(self) -> None:
        """Add the step in the proxies to the kernels and set the proxies to zero. A skipped step left them at zero."""
        for name, layer in self._layers.items():
            assert layer.bias is not None
            coordinates, proxy = self._coordinates[name], self._proxies[name]
            change = coordinates.transform(_as_OCT(layer, proxy))
            layer.weight.add_(_as_kernel(layer, change))
            layer.bias.addmv_(change.sum(2), coordinates.mean, alpha=-1 / self._phases[name])
        torch._foreach_zero_(list(self._proxies.values()))

    def tensors(self) -> Iterator[Tensor]:
        """All measured tensors themselves, not copies, so that they can be set in place."""
        for coordinates in self._coordinates.values():
            yield from coordinates

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the tensors in `state_dict`, also before `measure`."""
        return {
            name: {
                "mean": (inputs,),
                "channels": (inputs, inputs),
                "taps": (taps, taps),
                "scale": (layer.out_channels,),
            }
            for name, layer in self._layers.items()
            for inputs, taps in [(layer.in_channels, math.prod(layer.kernel_size))]
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: coordinates._asdict() for name, coordinates in self._coordinates.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, layer in self._layers.items():
            self._coordinates[name] = Coordinates(**{key: each.to(layer.weight) for key, each in state[name].items()})


def _activations(model: FactorizedPrior, x_BCHW: Tensor) -> Iterator[tuple[ConvLayer, Tensor, Tensor]]:
    """Yield every convolution with its inputs and outputs. The decoder's are computed from rounded latents."""
    medians = medians_of(model)
    values = x_BCHW
    for transform in (model.g_a, model.g_s):
        for layer in transform:
            before, values = values, layer(values)
            if isinstance(layer, ConvLayer):
                yield layer, before, values
        values = round_about_medians(values, medians) if transform is model.g_a else values


def _as_OCT(layer: ConvLayer, kernel: Tensor) -> Tensor:
    return (kernel.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel).flatten(2)


def _as_kernel(layer: ConvLayer, kernel_OCT: Tensor) -> Tensor:
    kernel = kernel_OCT.unflatten(2, layer.kernel_size)
    output: Tensor = kernel.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else kernel
    return output
