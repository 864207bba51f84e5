"""The devices of these tests. Those that need a GPU have the marker `cuda`, and are skipped where torch sees none."""

import pytest
import torch

_GPUS = torch.cuda.device_count()
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
needs_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(_GPUS < 1, reason="torch sees no CUDA device"),
    pytest.mark.timeout(300),
]
needs_two_gpus = [
    pytest.mark.cuda,
    pytest.mark.skipif(_GPUS < 2, reason=f"NCCL wants a device per rank, and torch sees {_GPUS}"),
    pytest.mark.timeout(300),
]
both_devices = pytest.mark.parametrize(
    "device", [pytest.param(CPU, id="cpu"), pytest.param(CUDA, id="cuda", marks=needs_cuda)]
)
"""For what a CPU can show too: then the test itself is tried without a GPU."""
