"""The precision of a run on CUDA, and torch's switches for it."""

from collections.abc import Iterator

import pytest
import torch

from relic.errors import InputError
from train.arithmetic import mixed_dtype, set_backends

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _switches_as_before() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def test_mixed_precision_is_on_for_cuda_alone_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    a_card(monkeypatch, (9, 0))
    assert mixed_dtype("auto", "fp16", CPU) is None
    assert mixed_dtype("auto", "fp16", CUDA) == torch.float16
    assert mixed_dtype("auto", "bf16", CUDA) == mixed_dtype(True, "bf16", CPU) == torch.bfloat16
    assert mixed_dtype(False, "bf16", CUDA) is None


def test_a_card_without_bf16_convolutions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    a_card(monkeypatch, (7, 5))
    with pytest.raises(InputError) as refused:
        mixed_dtype("auto", "bf16", CUDA)
    assert str(refused.value) == (
        "--amp_dtype bf16: Tesla T4 (compute capability 7.5) has no bf16 convolutions; use --amp_dtype fp16"
    )
    assert mixed_dtype("auto", "fp16", CUDA) == torch.float16
    assert mixed_dtype(False, "bf16", CUDA) is None


@pytest.mark.parametrize("mixed", [False, True])
def test_what_stays_in_fp32_under_mixed_precision_uses_no_tf32(mixed: bool) -> None:
    """`allow_tf32` holds for the backward pass too: nothing sets it back before the process ends."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    set_backends(CUDA, mixed=mixed, deterministic=False)
    assert torch.backends.cudnn.allow_tf32 is not mixed
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.benchmark


def test_a_deterministic_run_searches_no_kernels_and_fills_no_memory() -> None:
    torch.backends.cudnn.benchmark = True
    set_backends(CUDA, mixed=True, deterministic=True)
    assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
    poisoned = torch.full((1 << 16,), 3.0)
    del poisoned
    assert not torch.isnan(torch.empty(1 << 16)).all()  # what torch fills with is NaN
