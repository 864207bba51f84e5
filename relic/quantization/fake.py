"""Fake quantization: the codec in torch, with the roundings of its INT8 files.

The grid is that of onnxruntime's quantizer, in the files of `export.int8`:

- Weights: int8 per output channel, symmetric; the step is max |w| / 127, changed a little by `weight_steps`. A decoder
  of 3x3 convolutions (`--upsample subpixel`) has an output channel, and so a step, for each of the four phases.
- Activations after ReLU: uint8 per tensor, 0 is level 0.
- Biases: int32 in steps of (step of the input) x (step of the weights).
- x in steps of 1/255, latents on their own grid, x_hat in steps of 1/255.

A transform with GDN is left in float. Rounding passes gradients through (Bengio et al. 2013, arXiv 1308.3432). The
steps of activations have the gradient of LSQ (Esser et al. 2020, arXiv 1902.08153).

Shapes: weights of Conv2d (O, I, k, k), of ConvTranspose2d (I, O, k, k).
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.entropy import medians_of
from relic.codec.model import ConvLayer
from relic.quantization.latent_grid import LatentGrid
from relic.quantization.weight_steps import off_borders

_LEVELS = 255
_PIXEL = float(torch.tensor(1 / _LEVELS))
_MOST = 127
_TINY = torch.finfo(torch.float32).tiny
_SMALLEST_STEP = 1e-12
"""Of a ReLU that gives 0 everywhere."""


@dataclass(frozen=True)
class Stage:
    """A convolution, and the ReLU after it."""

    name: str
    layer: ConvLayer
    relu: str | None
    """None for the last layer of a transform."""


def stages_of(model: FactorizedPrior, transform: str) -> list[Stage]:
    """The convolutions of `g_a` or `g_s`, in order; none if the transform has GDN."""
    layers = list(getattr(model, transform).named_children())
    if not all(isinstance(layer, ConvLayer | nn.ReLU) for _, layer in layers):
        return []
    following = [name for name, _ in layers[1:]] + [None]
    return [
        Stage(f"{transform}.{name}", layer, None if after is None else f"{transform}.{after}")
        for (name, layer), after in zip(layers, following, strict=True)
        if isinstance(layer, ConvLayer)
    ]


def channel_steps(layer: ConvLayer, *, by_phase: bool) -> Tensor:
    """The step of each output channel's weights, (O,), or with `by_phase` of each channel and phase, (O, 2, 2).

    Tap (i, j) of a transposed convolution belongs to the phase (i mod 2, j mod 2) of the outputs.
    """
    largest = layer.weight.detach().abs()
    if by_phase and isinstance(layer, nn.ConvTranspose2d):
        phases = [largest[:, :, i::2, j::2].amax((0, 2, 3)) for i in (0, 1) for j in (0, 1)]
        steps = torch.stack(phases, 1).unflatten(1, (2, 2)) / _MOST
    else:
        steps = largest.amax([side for side in range(4) if side != _out_axis(layer)]) / _MOST
    return torch.where(steps < _TINY, 1.0, steps)


def spread(steps: Tensor, layer: ConvLayer) -> Tensor:
    """`channel_steps` as a tensor that broadcasts with the weights."""
    if steps.ndim == 1:
        return steps.view([-1 if side == _out_axis(layer) else 1 for side in range(4)])
    rows, columns = (torch.arange(side, device=steps.device) % 2 for side in layer.kernel_size)
    return steps[:, rows[:, None], columns]


def rounded(values: Tensor) -> Tensor:
    """`values` rounded half to even, with the gradient of `values`."""
    return values + (values.detach().round() - values.detach())


@dataclass(eq=False)
class FakeQuantization:
    """Replaces the forward functions of a model's convolutions and ReLUs. No parameter or module is wrapped or renamed.

    In training, latents are as without it: noise stands for their rounding, which the grid does not change. Biases stay
    in float, since their steps are tiny. In evaluation every value is that of the INT8 file.
    """

    model: FactorizedPrior
    by_phase: bool
    """Whether the decoder is exported with 3x3 convolutions, whose phases have steps of their own."""
    grid: LatentGrid | None = None
    """None: latents stay in float."""
    log_steps: dict[str, nn.Parameter] = field(default_factory=dict)
    """Per ReLU: the logarithm of its step, (1,). A change by a learning rate is then relative to the step."""
    momentum: float = 0.0
    """In training, the share of each batch's largest value in the range of a ReLU: a moving average. 0: not used."""
    range_levels: int = _LEVELS
    """The level of the largest value of a ReLU. The levels above it are for larger values."""
    over_ranks: Callable[[Tensor], Tensor] = lambda largest: largest
    """Makes the largest value of this rank's batch, 0-dimensional, that of the whole batch."""
    float_latents: bool = False
    """Whether the encoder gives latents in float, beside the grid: for a loss that adds noise to them."""
    transforms: Collection[str] = ("g_a", "g_s")
    """The others stay in float."""

    def __post_init__(self) -> None:
        self._stages = {transform: stages_of(self.model, transform) for transform in self.transforms}
        device = next(self.model.parameters()).device
        for stage in self.stages:
            if stage.relu is not None and stage.relu not in self.log_steps:
                self.log_steps[stage.relu] = nn.Parameter(torch.zeros(1, device=device))

    @property
    def stages(self) -> list[Stage]:
        """All layers that are quantized."""
        return [stage for stages in self._stages.values() for stage in stages]

    @property
    def activation_steps(self) -> dict[str, float]:
        """Per ReLU: its step."""
        return {name: float(step.detach().exp()) for name, step in self.log_steps.items()}

    @torch.no_grad()
    def set_ranges(self, ranges: Mapping[str, float]) -> None:
        """Set the largest value of each ReLU."""
        for name, largest in ranges.items():
            self.log_steps[name].fill_(largest / self.range_levels).clamp_(min=_SMALLEST_STEP).log_()

    def attach(self) -> None:
        """Quantize the model from now on."""
        modules = dict(self.model.named_modules())
        for transform, stages in self._stages.items():
            source: str | None = None
            for number, stage in enumerate(stages):
                last = number == len(stages) - 1
                modules[stage.name].forward = functools.partial(self._convolve, transform, stage, source, last)
                if stage.relu is not None:
                    modules[stage.relu].forward = functools.partial(self._rectify, stage.relu)
                source = stage.relu

    def detach(self) -> None:
        """Give the model its own functions back."""
        modules = dict(self.model.named_modules())
        for stage in self.stages:
            for name in (stage.name, stage.relu):
                if name is not None:
                    modules[name].__dict__.pop("forward", None)

    def ends(self, stage: Stage) -> tuple[Tensor | None, Tensor | None]:
        """The steps of the layer's input and output; None for latents in float."""
        transform = "g_a" if stage.name.startswith("g_a") else "g_s"
        stages = self._stages[transform]
        number = stages.index(stage)
        before = stages[number - 1].relu if number else None
        latents = None if self.grid is None else float(self.grid.scale)
        first, last = (_PIXEL, latents) if transform == "g_a" else (latents, _PIXEL)

        def step(relu: str | None, outer: float | None) -> Tensor | None:
            if relu is not None:
                return self.log_steps[relu].detach().exp()
            return None if outer is None else stage.layer.weight.new_tensor([outer])

        return step(before, first), step(stage.relu, last)

    def in_file(self, stage: Stage, steps: Tensor) -> Tensor:
        """The steps of a layer's weights as they are in the file."""
        step_in, step_out = self.ends(stage)
        return steps if step_in is None or step_out is None else off_borders(steps, step_in, step_out)

    def weights(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """The quantized weights of a layer, and the steps of its channels."""
        steps = self.in_file(stage, channel_steps(stage.layer, by_phase=self.by_phase))
        spread_steps = spread(steps, stage.layer)
        return rounded(stage.layer.weight / spread_steps).clamp(-_MOST, _MOST) * spread_steps, steps

    def bias(self, stage: Stage) -> Tensor:
        """The bias of a layer."""
        assert stage.layer.bias is not None
        return stage.layer.bias

    def _convolve(self, transform: str, stage: Stage, source: str | None, last: bool, x: Tensor) -> Tensor:
        weights, steps = self.weights(stage)
        if self.model.training:
            return _run(stage.layer, x, weights, self.bias(stage))
        encodes = transform == "g_a"
        step_in, _ = self.ends(stage)
        if source is None and not encodes and self.grid is not None:
            x = self._on_grid(x, self.grid)
        given = encodes and last and not self.float_latents
        bias = self._exact_bias(stage, steps, step_in, moved_in=not encodes and source is None, moved_out=given)
        output = _add_bias(_run(stage.layer, x, weights, None), bias)
        if not last:
            return output
        if not encodes:
            return torch.fake_quantize_per_tensor_affine(output, 1 / _LEVELS, 0, 0, _LEVELS)
        return self._on_grid(output, self.grid) if given and self.grid is not None else output

    def _rectify(self, name: str, x: Tensor) -> Tensor:
        """ReLU and rounding in one: what is below level 0 becomes 0."""
        if self.momentum and self.model.training:
            self._follow(name, x)
        step = self.log_steps[name].exp()
        if torch.is_grad_enabled():
            zero = torch.zeros_like(step)
            output: Tensor = torch._fake_quantize_learnable_per_tensor_affine(x, step, zero, 0, _LEVELS, 1.0)
            return output
        return torch.fake_quantize_per_tensor_affine(x, float(step), 0, 0, _LEVELS)

    @torch.no_grad()
    def _follow(self, name: str, x: Tensor) -> None:
        step = (self.over_ranks(x.amax()) / self.range_levels).clamp(min=_SMALLEST_STEP)
        self.log_steps[name].copy_(torch.lerp(self.log_steps[name].exp(), step, self.momentum).log())

    def _on_grid(self, latents: Tensor, grid: LatentGrid) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(latents, float(grid.scale), grid.zero_point, 0, _LEVELS)

    def _exact_bias(
        self, stage: Stage, steps: Tensor, step_in: Tensor | None, *, moved_in: bool, moved_out: bool
    ) -> Tensor:
        """The rounded bias: (O,), or (O, 2, 2) by phase. Moved where the latents beside the layer are on the grid."""
        layer = stage.layer
        phased = self.by_phase and isinstance(layer, nn.ConvTranspose2d)
        bias = self.bias(stage)[:, None, None].expand(-1, 2, 2) if phased else self.bias(stage)
        if self.grid is not None and (moved_in or moved_out):
            offsets = self._offsets(self.grid)
            bias = bias + (offsets if moved_out else -_added_by(offsets, layer, phased=phased))
        if step_in is None:
            return bias
        unit = step_in.detach() * steps.detach()
        return rounded(bias / unit) * unit

    def _offsets(self, grid: LatentGrid) -> Tensor:
        medians = medians_of(self.model).detach().flatten()
        return torch.from_numpy(grid.offsets(medians.cpu().numpy())).to(medians)


def _out_axis(layer: ConvLayer) -> int:
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def _run(layer: ConvLayer, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.ConvTranspose2d):
        padding = [int(side) for side in layer.padding]  # torch's type names also a str, which only Conv2d takes
        return F.conv_transpose2d(
            x, weights, bias, layer.stride, padding, layer.output_padding, layer.groups, layer.dilation
        )
    return F.conv2d(x, weights, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _add_bias(values: Tensor, bias: Tensor) -> Tensor:
    if bias.ndim == 1:
        return values + bias[:, None, None]
    blocks = values.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B, O, h, 2, w, 2
    added: Tensor = (blocks + bias[:, None, :, None, :]).flatten(4, 5).flatten(2, 3)
    return added


def _added_by(offsets: Tensor, layer: ConvLayer, *, phased: bool) -> Tensor:
    """What inputs that are `offsets` everywhere add to each output, away from the borders: (O,) or (O, 2, 2)."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return torch.einsum("oikl,i->o", layer.weight, offsets)
    added = torch.einsum("iokl,i->okl", layer.weight, offsets)
    if not phased:
        return added.sum((1, 2)) / (layer.stride[0] * layer.stride[1])
    sums = [added[:, i::2, j::2].sum((1, 2)) for i in (0, 1) for j in (0, 1)]
    by_phase: Tensor = torch.stack(sums, 1).unflatten(1, (2, 2))
    return by_phase
