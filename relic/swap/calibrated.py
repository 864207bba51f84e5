"""The calibrated swap: replace GDN by ReLU and refit the weights around it, without training.

The teacher is the codec with GDN. The student is the same codec with ReLU. Layer by layer:

1. The bias of the convolution before a ReLU is shifted so that the mean of every channel becomes k standard deviations.
   Then most values are above zero and pass the ReLU unchanged.
2. The convolution after the ReLU, weights and bias, is refitted by ridge regression. Its inputs are the student's
   activations. Its targets are the teacher's outputs at the same layer. So each layer corrects the errors before it.

The encoder's last layer is fitted to the teacher's latents, the decoder's to the teacher's pictures. If both sides are
swapped, the decoder is fitted on the student's rounded latents, and its last layer to the source pixels, which corrects
errors of the encoder too. One ReLU before that layer bends at bright colours if this helps (`bend.py`). It, k and the
ridge are chosen per layer, by the error at the output of the refitted convolution on held-out crops. The errors of a
crop count more, the better the teacher codes it.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable

import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import medians_of, round_about_medians
from relic.codec.model import ConvLayer, replace_gdn_with_relu, transforms_of
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.options import Parts
from relic.swap.bend import bend_if_better
from relic.swap.least_squares import num_features, phases_of
from relic.swap.refit import Chunks, FittedLayer, Regression, relu_of_lifted, wanted_rows

_CHUNK_VALUES = 1 << 23
"""Largest number of float32 values of an activation that are computed in one call."""

_LEAST_ERROR = 0.1
"""Share of the mean squared error that is added to that of each crop. It bounds the weights of crops without detail."""
_LOSSLESS = 1e-10
"""A squared error of 100 dB. It bounds the weights where the teacher makes no error."""

OnProgress = Callable[[float], object]
"""Called with the finished share of the work, 0 to 1."""


def swap_calibrated(
    model: FactorizedPrior,
    parts: Parts,
    images_BHWC: Tensor,
    *,
    num_held_out: int | None = None,
    on_progress: OnProgress = lambda share: None,
) -> list[FittedLayer]:
    """Replace GDN by ReLU in `parts` and refit the layers around each ReLU. Returns what was chosen per layer.

    `images_BHWC`: uint8 on the CPU, sides multiples of 16, at least MIN_CALIB_IMAGES of them. The first `num_held_out`,
    by default a quarter, are held out to choose k and the ridge. Runs on the model's device, in fp32; the regressions
    are in float64. It draws no random numbers: the same crops, machine and number of threads give the same weights. A
    transform without GDN is not changed. Memory at N = 192: two activations, together 20 MB per 224x224 crop; normal
    equations, 0.6 GB.
    """
    teacher = copy.deepcopy(model).eval()
    swapped = {name: transform for name, transform in transforms_of(model, parts).items() if _has_gdn(transform)}
    replace_gdn_with_relu(model, parts)
    if not swapped:
        return []
    was_training = model.training
    model.eval()
    num_held_out = num_held_out or len(images_BHWC) // 4
    device, work = next(model.parameters()).device, _Work(list(swapped.values()), on_progress)
    with torch.no_grad(), without_tf32():
        pixels = _chunked(images_BHWC, num_held_out, model.g_a[0].out_channels)
        weights_B = weights_of(teacher, pixels, device)
        fitter = _Fitter(device=device, work=work, num_held_out=num_held_out, weights_B=weights_B)
        if "g_a" in swapped:
            latents, wanted = fitter.refit("g_a", model.g_a, teacher.g_a, pixels, pixels)
        else:
            latents = wanted = fitter.apply(teacher.g_a, pixels)
        if "g_s" in swapped:
            medians = medians_of(teacher)
            rounded, wanted = (fitter.apply(lambda y: round_about_medians(y, medians), y) for y in (latents, wanted))
            if "g_a" in swapped:
                fitter.refit("g_s", model.g_s, teacher.g_s, rounded, wanted, same_input=False, last=pixels)
            else:
                fitter.refit("g_s", model.g_s, teacher.g_s, rounded, wanted)
    model.train(was_training)
    return fitter.fitted


def _has_gdn(transform: nn.Sequential) -> bool:
    return any(isinstance(layer, GDN) for layer in transform)


def _chunked(images_BHWC: Tensor, num_held_out: int, channels: int) -> Chunks:
    """Crops in [0, 1], in chunks whose size is limited by the first layer's output. No chunk mixes held-out crops."""
    _, height, width, _ = images_BHWC.shape
    size = max(1, _CHUNK_VALUES // (channels * height * width // 4))
    parts = images_BHWC[:num_held_out], images_BHWC[num_held_out:]
    return [to_float(chunk) for part in parts for chunk in part.split(size)]


def weights_of(teacher: FactorizedPrior, pixels: Chunks, device: torch.device) -> Tensor:
    """What the squared errors of each crop count, (crops,) float64: about 1 / the teacher's own squared error.

    PSNR is a logarithm. So an error of the same size costs more where the teacher is good: in smooth pictures.
    """
    medians = medians_of(teacher)
    errors = []
    for chunk in pixels:
        x = chunk.to(device)
        x_hat = teacher.g_s(round_about_medians(teacher.g_a(x), medians)).clamp(0, 1)
        errors.append((x_hat - x).square().mean((1, 2, 3)).cpu().double())
    error_B = torch.cat(errors)
    weights_B = 1 / (error_B + _LEAST_ERROR * error_B.mean()).clamp_min(_LOSSLESS)
    return weights_B / weights_B.mean()


class _Work:
    """The finished share of the multiplications: an estimate, since it is not known how many k will be tried."""

    def __init__(self, transforms: list[nn.Sequential], on_progress: OnProgress) -> None:
        layers = [layer for transform in transforms for layer in transform if isinstance(layer, ConvLayer)]
        self._costs = {layer: _multiplications(layer) for layer in layers}
        self._on_progress = on_progress
        self._finished = 0.0

    def advance(self, layer: ConvLayer, share: float) -> None:
        """Report that `share` (0 to 1) of `layer` is done."""
        done = self._finished + share * self._costs[layer]
        if share == 1:
            self._finished = done
        self._on_progress(done / sum(self._costs.values()))


def _multiplications(layer: ConvLayer) -> float:
    sizes = [num_features(layer, phase) for phase in phases_of(layer)]
    return sum(float(wanted_rows(size)) * size**2 for size in sizes)


@dataclasses.dataclass(kw_only=True)
class _Fitter:
    """Refits the convolutions of transforms, in order."""

    device: torch.device
    work: _Work
    num_held_out: int
    weights_B: Tensor
    fitted: list[FittedLayer] = dataclasses.field(default_factory=list)

    def apply(self, function: Callable[[Tensor], Tensor], chunks: Chunks) -> Chunks:
        """Apply `function` to every chunk on the device; the results are on the CPU."""
        return [function(chunk.to(self.device)).cpu() for chunk in chunks]

    def refit(
        self,
        name: str,
        student: nn.Sequential,
        teacher: nn.Sequential,
        student_input: Chunks,
        teacher_input: Chunks,
        *,
        same_input: bool = True,
        last: Chunks | None = None,
    ) -> tuple[Chunks, Chunks]:
        """Fit `student` to `teacher` layer by layer and return the outputs of both.

        `same_input`: both have the same input, so the first convolution is not changed. `last`: the target of the last
        convolution, by default the teacher's output.
        """
        layers = {place: layer for place, layer in enumerate(student) if isinstance(layer, ConvLayer)}
        wanted = self.apply(teacher[0], teacher_input)
        if not same_input:
            self.fitted.append(self._regression(layers[0], student_input, wanted).fit(f"{name}.0"))
        self.work.advance(layers[0], 1)
        before = self.apply(layers[0], student_input)
        for place, following in itertools.pairwise(layers):
            wanted = self.apply(teacher[place + 1 : following + 1], wanted)
            goal = last if last is not None and following == max(layers) else wanted
            regression = self._regression(layers[following], before, goal)
            fitted, lift = regression.fit_behind_relu(f"{name}.{following}")
            if name == "g_s" and following == max(layers):
                fitted, lift = bend_if_better(regression, layers[place], fitted, lift)
            self.fitted.append(fitted)
            self.work.advance(layers[following], 1)
            bias = layers[place].bias
            assert bias is not None
            bias.add_(lift.to(bias))
            before = [layers[following](relu_of_lifted(z.to(self.device), lift)).cpu() for z in before]
        return before, wanted

    def _regression(self, layer: ConvLayer, before: Chunks, goal: Chunks) -> Regression:
        return Regression(
            layer=layer,
            before=before,
            goal=goal,
            device=self.device,
            num_held_out=self.num_held_out,
            weights_B=self.weights_B,
            advance=lambda share: self.work.advance(layer, share),
        )
