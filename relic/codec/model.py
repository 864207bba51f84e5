"""Build CompressAI's `bmshj2018_factorized` with GDN or ReLU in encoder and decoder. No parameter is renamed.

x -> g_a (analysis transform, encoder) -> y -> entropy bottleneck -> y_hat -> g_s (synthesis, decoder) -> x_hat
"""

from collections.abc import Mapping
from typing import NamedTuple

from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from relic.codec.constants import MAX_CHANNELS
from relic.errors import InputError
from relic.options import Parts

NAME = "bmshj2018_factorized"
ConvLayer = nn.Conv2d | nn.ConvTranspose2d


class Architecture(NamedTuple):
    """What is needed to build the model for a checkpoint's tensors."""

    channels: tuple[int, int]
    """N (inner channels) and M (latent channels)."""
    replaced: Parts
    """Transforms in which ReLU replaces GDN."""
    name: str = NAME

    def with_relu_in(self, parts: Parts) -> "Architecture":
        """The architecture after GDN is also replaced in `parts`."""
        if "none" in (parts, self.replaced):
            return self._replace(replaced=parts if self.replaced == "none" else self.replaced)
        return self._replace(replaced=parts if parts == self.replaced else "all")


def zoo_channels(quality: int) -> tuple[int, int]:
    """(N, M) of CompressAI's pretrained models, quality 1 to 8."""
    return (128, 192) if quality <= 5 else (192, 320)


def build_model(architecture: Architecture) -> FactorizedPrior:
    """A model with this architecture, random weights and empty tables."""
    model = FactorizedPrior(*architecture.channels)
    replace_gdn_with_relu(model, architecture.replaced)
    return model


TRANSFORMS: dict[Parts, tuple[str, ...]] = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s"), "none": ()}
"""Parts -> names of their transforms."""


def transforms_of(model: FactorizedPrior, parts: Parts) -> dict[str, nn.Sequential]:
    """Name -> transform of `parts`."""
    return {name: getattr(model, name) for name in TRANSFORMS[parts]}


def replace_gdn_with_relu(model: FactorizedPrior, mode: Parts) -> int:
    """Replace every GDN (encoder) and inverse GDN (decoder) of `mode` by `nn.ReLU`. Returns the number replaced.

    The layers keep their indices, so the state dict of a fully swapped model loads strictly into CompressAI's
    `FactorizedPriorReLU`. ReLU does not work in place, because hooks may read its input.
    """
    replaced = 0
    for transform in transforms_of(model, mode).values():
        for place, layer in enumerate(transform):
            if isinstance(layer, GDN):
                transform[place] = nn.ReLU(inplace=False)
                replaced += 1
    return replaced


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """The architecture, from the names and shapes of a state dict. Raises InputError if they are of another model."""
    try:
        channels = (state["g_a.0.weight"].size(0), state["g_a.6.weight"].size(0))
    except (KeyError, AttributeError, IndexError):
        names = ", ".join(f"{name:.40}" for name in list(state)[:4]) or "nothing"
        raise InputError(f"not a {NAME}: it has no g_a.0.weight and g_a.6.weight, but {names}") from None
    if not all(1 <= count <= MAX_CHANNELS for count in channels):
        raise InputError(f"not a {NAME}: {channels[0]} and {channels[1]} channels; 1 to {MAX_CHANNELS} can be built")
    swapped = ("g_a.1.beta" not in state, "g_s.1.beta" not in state)
    parts: dict[tuple[bool, bool], Parts] = {
        (True, True): "all",
        (True, False): "encoder",
        (False, True): "decoder",
        (False, False): "none",
    }
    return Architecture(channels, parts[swapped])
