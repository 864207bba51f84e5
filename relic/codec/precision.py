"""What is computed in full fp32: modules that must not run in bf16 or fp16 under autocast, and code without TF32.

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


def fp32_modules(model: nn.Module, policy: Policy, custom: Iterable[str] = ()) -> dict[str, nn.Module]:
    """Name -> module of all that a policy keeps in fp32.

    Entropy models are always covered: their likelihoods are differences of sigmoids with a floor of 1e-9, which fp16
    cannot represent. `custom` holds parts of class names; one that matches nothing is an InputError.
    """
    modules = dict(model.named_modules())
    covered = {name: module for name, module in modules.items() if isinstance(module, EntropyModel)}
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


def install_fp32_islands(model: nn.Module, policy: Policy, custom: Iterable[str] = ()) -> list[str]:
    """Make the covered modules run in fp32 under autocast, inputs cast up; return their names.

    Only the bound `forward` changes: no parameter or module is wrapped or renamed.
    """
    covered = fp32_modules(model, policy, custom)
    for module in covered.values():
        module.forward = in_fp32(module.forward)
    return list(covered)


def in_fp32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, run without autocast and with floating-point tensors cast up."""

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
    """Let CUDA convolutions and matrix products keep all 24 bits of fp32's significand.

    PyTorch's default rounds a convolution's factors to TF32, which has 11. The model's convolutions may be so rounded
    in training; what is measured, fitted or is a loss may not.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
