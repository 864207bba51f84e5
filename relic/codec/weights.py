"""The weights of a file into a model: every name, shape and type is compared before the model is built.

Only parameters count. CompressAI also stores constants (the floor of the likelihoods, GDN's pedestal, the targets
of the quantiles) and CDF tables. Constants are those of the code: fp16 turns the floor 1e-9 into 0. Tables are computed
from the density before each use; those of the file are only kept for CompressAI's own functions, if they can code.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import TypeGuard

import torch
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.bitstream.tables import Tables
from relic.codec.constants import STRIDE
from relic.codec.entropy import check_quantiles
from relic.codec.model import NAME, Architecture, build_model
from relic.codec.tensor_file import fault_of, is_real
from relic.errors import InputError
from relic.options import Parts

_TABLES = ("_quantized_cdf", "_cdf_length", "_offset")
# Two sizes that no other dimension of the model has.
_INNER, _LATENT = 23, 29


def check_fit(state: Mapping[str, Tensor], architecture: Architecture, source: str) -> None:
    """Raise InputError naming `source` if a parameter is missing, unknown, of another shape, or holds no real numbers.

    Builds no model of this architecture.
    """
    wanted, others = _shapes(architecture)
    missing = (f"{name} is missing" for name in wanted if name not in state)
    unfit = (fault for name, tensor in state.items() if (fault := _fault(name, tensor, wanted, others)))
    if fault := next(itertools.chain(missing, unfit), ""):
        raise InputError(f"{source}: its tensors do not fit the model: {fault}; use a checkpoint of a {NAME} alone")


def _fault(name: str, tensor: Tensor, wanted: Mapping[str, tuple[int, ...]], others: frozenset[str]) -> str:
    """What keeps a tensor of a file out of the model; empty if nothing does."""
    if name not in wanted and name not in others:
        return f"{name} is unknown"
    if fault := fault_of(tensor):
        return f"{name} is {fault}"
    if name in wanted and not is_real(tensor):
        return f"{name} holds {tensor.dtype}, not floats"
    if name in wanted and tuple(tensor.shape) != wanted[name]:
        return f"{name} has another shape, {_sides(tensor.shape)} instead of {_sides(wanted[name])}"
    return ""


@torch.no_grad()
def load_weights(model: FactorizedPrior, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the parameters of `state`, which `check_fit` has accepted, into `model`, converted to its types.

    Raises InputError naming `source` if a parameter is not finite, or a quantile is out of range.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])
        if not torch.isfinite(parameter).all():
            raise InputError(f"{source}: {name} is not finite: its training diverged; use an earlier checkpoint")
    bottleneck = model.entropy_bottleneck
    check_quantiles(bottleneck, source)
    tables = {name: state.get(f"entropy_bottleneck.{name}") for name in _TABLES}
    if _can_code(tables, bottleneck.quantiles):
        for name, tensor in tables.items():
            setattr(bottleneck, name, tensor.clone())


def _can_code(tables: Mapping[str, Tensor | None], quantiles: Tensor) -> TypeGuard[Mapping[str, Tensor]]:
    cdf, length, offset = tables.values()
    if cdf is None or length is None or offset is None or offset.shape != quantiles.shape[:1]:
        return False
    if not cdf.dtype == length.dtype == offset.dtype == torch.int32:
        return False
    try:
        Tables(cdf.numpy(), length.numpy(), offset.numpy(), quantiles[:, 0, 1].detach().numpy(), STRIDE)
    except InputError:
        return False
    return True


def _shapes(architecture: Architecture) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Name -> shape of each parameter, and the names of the other tensors in a state dict."""
    parameters, others = _marked_shapes(architecture.replaced)
    sizes = dict(zip((_INNER, _LATENT), architecture.channels, strict=True))
    return {name: tuple(sizes.get(side, side) for side in shape) for name, shape in parameters.items()}, others


@functools.cache
def _marked_shapes(replaced: Parts) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """`_shapes` of a small model, in which the sizes _INNER and _LATENT stand for N and M."""
    with torch.random.fork_rng(devices=[]):  # the seed of a run must give the same weights with and without this
        model = build_model(Architecture((_INNER, _LATENT), replaced))
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return parameters, frozenset(model.state_dict().keys() - parameters.keys())


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8])) or "one number"
