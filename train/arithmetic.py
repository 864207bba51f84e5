"""How a run computes: the data type of mixed precision, TF32, and how torch chooses its kernels."""

import torch

from relic.errors import InputError
from relic.options import AmpDtype, Switch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_WITH_BF16 = (8, 0)
"""Compute capability of Ampere. cuDNN has no bf16 convolutions for older cards, and torch's own are very slow."""


def mixed_dtype(amp: Switch, amp_dtype: AmpDtype, device: torch.device) -> torch.dtype | None:
    """The data type of mixed precision; None if everything is in fp32. Raises InputError if the card cannot do it."""
    if not (device.type == "cuda" if amp == "auto" else amp):
        return None
    if amp_dtype == "bf16" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FIRST_WITH_BF16:
            number = ".".join(map(str, capability))
            raise InputError(
                f"--amp_dtype bf16: {torch.cuda.get_device_name(device)} (compute capability {number}) has no bf16 "
                "convolutions; use --amp_dtype fp16"
            )
    return _DTYPES[amp_dtype]


def set_backends(device: torch.device, *, mixed: bool, deterministic: bool) -> None:
    """Set torch's switches for the whole process, forward and backward passes.

    Under mixed precision only the modules that are kept in fp32 have fp32 convolutions, so TF32 is off. Without mixed
    precision the convolutions may use TF32, which has 11 bits like fp16. Matrix products never use it.
    """
    if deterministic:
        torch.use_deterministic_algorithms(True)
        # It is for finding reads of memory that nothing was written to. It would fill every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        if mixed:
            torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        # Crops have one size, so each convolution's fastest kernel is searched once.
        torch.backends.cudnn.benchmark = not deterministic
