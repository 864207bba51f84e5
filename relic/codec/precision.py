"""Modules that stay in fp32 under autocast, and code that must not use TF32.

The policies are nested supersets: none < entropy < entropy+decoder < all_normexp.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from compressai.entropy_models import EntropyModel
from compressai.layers import GDN
from torch import Tensor, nn

from relic.errors import InputError
from relic.options import Policy


def fp32_modules(
    model: nn.Module, policy: Policy, custom: Iterable[str] = (), dtype: torch.dtype = torch.bfloat16
) -> dict[str, nn.Module]:
    """Name -> module of all modules that `policy` keeps in fp32 beside others in `dtype`.

    Entropy models are always included: their likelihoods are differences of sigmoids with a floor of 1e-9, which fp16
    cannot represent. So is GDN in fp16: it squares its input, the square of 256 is infinite there, and the output
    would be 0, which is finite. `custom` holds parts of class names. Raises InputError for a part that matches no
    module.
    """
    modules = dict(model.named_modules())
    always: tuple[type[nn.Module], ...] = (EntropyModel, GDN) if dtype == torch.float16 else (EntropyModel,)
    covered = {name: module for name, module in modules.items() if isinstance(module, always)}
    if policy in ("entropy+decoder", "all_normexp"):
        softmaxes = (nn.Softmax, nn.LogSoftmax)
        covered |= {name: m for name, m in modules.items() if name == "g_s" or isinstance(m, softmaxes)}
    if policy == "all_normexp":
        covered |= {name: m for name, m in modules.items() if isinstance(m, GDN) or "Norm" in type(m).__name__}
    if policy == "custom":
        parts = list(custom)
        for part in parts:
            matches = {name: m for name, m in modules.items() if part in type(m).__name__}
            if not matches:
                classes = sorted({type(m).__name__ for m in modules.values()})
                raise InputError(f"--local_fp32_custom {part}: matches no module; classes here: {', '.join(classes)}")
            covered |= matches
        if not parts:
            raise InputError("--local_fp32 custom: name classes with --local_fp32_custom, for example GDN,Conv2d")
    return {name: covered[name] for name in modules if name in covered}


def keep_in_fp32(
    model: nn.Module, policy: Policy, custom: Iterable[str] = (), dtype: torch.dtype = torch.bfloat16
) -> list[str]:
    """Make the modules of `policy` run in fp32 under autocast, with inputs cast to fp32. Returns their names.

    Only the bound `forward` changes: no parameter or module is wrapped or renamed.
    """
    covered = fp32_modules(model, policy, custom, dtype)
    for module in covered.values():
        module.forward = in_fp32(module.forward)
    return list(covered)


def in_fp32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function without autocast and with floating-point tensors cast to fp32."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return forward(*map(_widen, args), **{name: _widen(value) for name, value in kwargs.items()})

    return run


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Let CUDA convolutions and matrix products use all 24 bits of fp32's significand.

    By default, PyTorch rounds the factors of a convolution to TF32, which has 11 bits. The model's convolutions may use
    TF32 in training. Losses, metrics and fits may not.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
