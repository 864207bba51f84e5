"""The calibrated swap: put ReLU in GDN's place and refit the weights around it, without training.

Each ReLU gets a signal that lies mostly above zero: the bias of the convolution before it is shifted so that every
channel's mean becomes k standard deviations. The convolution after it is then refitted, weights and bias, by ridge
regression, so that on the student's own activations it gives what the GDN teacher's gives at that place; the encoder's
last gives the teacher's latents, the decoder's last the source pixels. Layer follows layer, so each makes up for what
those before it have lost. Where both sides are swapped the decoder is fitted on the student's own rounded latents.

k and the ridge are chosen layer by layer on crops held back, by the error at the next convolution's output.
"""

import copy
import itertools
from collections.abc import Callable

import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.entropy import medians_of, round_about_medians
from relic.codec.model import Parts, replace_gdn_with_relu, transforms_of
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.swap.least_squares import Layer, num_features, phases_of
from relic.swap.refit import HELD_BACK, Chunks, FittedLayer, Regression, lifted, wanted_rows

_CHUNK_VALUES = 1 << 23
"""Float32 values of the widest activation that are computed at once."""

OnProgress = Callable[[float], object]
"""Told the share of the work that is done, 0 to 1."""


def swap_calibrated(
    model: FactorizedPrior, parts: Parts, images_BHWC: Tensor, *, on_progress: OnProgress = lambda share: None
) -> list[FittedLayer]:
    """Replace GDN by ReLU in `parts` as `replace_gdn_with_relu` does, then refit; return what was chosen.

    `images_BHWC`: uint8 on the CPU, sides multiples of 16, at least MIN_CALIB_IMAGES of them; the first quarter is held
    back while k and the ridge are chosen. Works on the model's device, in fp32 and for the regressions in float64, and
    draws no random numbers: the same crops, machine and number of threads give the same weights. A transform without
    GDN is left as it is. Memory: two activations at the widest place, 20 MB a crop of 224x224 at N = 192, and the
    normal equations, 0.6 GB there.
    """
    teacher = copy.deepcopy(model).eval()
    swapped = {name: transform for name, transform in transforms_of(model, parts).items() if _has_gdn(transform)}
    replace_gdn_with_relu(model, parts)
    if not swapped:
        return []
    was_training = model.training
    model.eval()
    fitter = _Fitter(next(model.parameters()).device, _Work(list(swapped.values()), on_progress))
    with torch.no_grad(), without_tf32():
        pixels = _chunked(images_BHWC, model.g_a[0].out_channels)
        if "g_a" in swapped:
            latents, wanted = fitter.refit("g_a", model.g_a, teacher.g_a, pixels, pixels)
        else:
            latents = wanted = fitter.apply(teacher.g_a, pixels)
        if "g_s" in swapped:
            medians = medians_of(teacher)
            rounded, wanted = (fitter.apply(lambda y: round_about_medians(y, medians), y) for y in (latents, wanted))
            fitter.refit("g_s", model.g_s, teacher.g_s, rounded, wanted, same_input="g_a" not in swapped, last=pixels)
    model.train(was_training)
    return fitter.fitted


def _has_gdn(transform: nn.Sequential) -> bool:
    return any(isinstance(layer, GDN) for layer in transform)


def _chunked(images_BHWC: Tensor, channels: int) -> Chunks:
    """Crops in [0, 1], so many at once as the first layer's output allows; held-back and other crops never mixed."""
    count, height, width, _ = images_BHWC.shape
    size = max(1, _CHUNK_VALUES // (channels * height * width // 4))
    parts = images_BHWC[: count // HELD_BACK], images_BHWC[count // HELD_BACK :]
    return [to_float(chunk) for part in parts for chunk in part.split(size)]


class _Work:
    """How much of the multiplications is done: an estimate, since it depends on how many k are tried."""

    def __init__(self, transforms: list[nn.Sequential], on_progress: OnProgress) -> None:
        layers = [layer for transform in transforms for layer in transform if isinstance(layer, Layer)]
        self._costs = {layer: _multiplications(layer) for layer in layers}
        self._closed, self._on_progress = 0.0, on_progress

    def advance(self, layer: Layer, share: float) -> None:
        """`layer` is done to `share`, at 1 for good."""
        done = self._closed + share * self._costs[layer]
        if share == 1:
            self._closed = done
        self._on_progress(done / sum(self._costs.values()))


def _multiplications(layer: Layer) -> float:
    sizes = [num_features(layer, phase) for phase in phases_of(layer)]
    return sum(float(wanted_rows(size)) * size**2 for size in sizes)


class _Fitter:
    """Refits a transform's convolutions one after the other."""

    def __init__(self, device: torch.device, work: _Work) -> None:
        self.fitted: list[FittedLayer] = []
        self._device, self._work = device, work

    def apply(self, function: Callable[[Tensor], Tensor], chunks: Chunks) -> Chunks:
        """`function` of every chunk, computed on the device."""
        return [function(chunk.to(self._device)).cpu() for chunk in chunks]

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

        `same_input`: both get the same, so the first convolution stays as it is. `last`: what the last convolution is
        fitted to, by default the teacher's output.
        """
        layers = {place: layer for place, layer in enumerate(student) if isinstance(layer, Layer)}
        wanted = self.apply(teacher[0], teacher_input)
        if same_input:
            self._work.advance(layers[0], 1)
        else:
            self.fitted.append(self._regression(layers[0], student_input, wanted).fit(f"{name}.0"))
        before = self.apply(layers[0], student_input)
        for place, following in itertools.pairwise(layers):
            wanted = self.apply(teacher[place + 1 : following + 1], wanted)
            goal = last if last is not None and following == max(layers) else wanted
            fitted, lift = self._regression(layers[following], before, goal).fit_behind_relu(f"{name}.{following}")
            self.fitted.append(fitted)
            bias = layers[place].bias
            assert bias is not None
            bias.add_(lift.to(bias))
            before = [layers[following](lifted(z.to(self._device), lift)).cpu() for z in before]
        return before, wanted

    def _regression(self, layer: Layer, before: Chunks, goal: Chunks) -> Regression:
        return Regression(
            layer, before, goal, device=self._device, advance=lambda share: self._work.advance(layer, share)
        )
