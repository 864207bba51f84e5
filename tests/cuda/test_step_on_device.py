"""The training step on a device: it waits for nothing, and its numbers are the CPU's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from torch.profiler import ProfilerActivity, profile

from benchmarks._gpu.learners import tf32_as_in
from relic.codec.loss import LossConfig, compute_loss
from relic.codec.ms_ssim import ms_ssim
from relic.loader.device_feed import DeviceBatch
from tests.cuda.devices import CPU, CUDA, both_devices, needs_cuda
from tests.cuda.learners import batch_on, learner_on
from train.learner import Learner

_FLOOR = 1e-6
_READS = {"aten::item", "aten::_local_scalar_dense"}


def losses(learner: Learner, batch: DeviceBatch, steps: int = 5) -> list[float]:
    return [learner.step(batch, step).loss.total.item() for step in range(steps)]


def rounded(self: Any, inputs: torch.Tensor, mode: str, means: Any = None) -> torch.Tensor:
    """In the place of noise, which differs between devices."""
    return inputs + (torch.round(inputs) - inputs).detach()


@pytest.mark.parametrize(
    "flags",
    [(), ("--loss_type", "recon"), ("--distortion", "mse"), ("--precondition",), ("--amp_dtype", "fp16")],
    ids=lambda flags: " ".join(flags) or "default",
)
@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=needs_cuda, id="cuda")])
def test_a_step_waits_for_nothing(device: torch.device, crops: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Under this mode reads of values and copies of pageable memory raise. To wait for an event is allowed."""
    learner, batch = learner_on(device, crops, tmp_path, "--amp", "true", *flags), batch_on(device)
    for step in range(3):
        learner.step(batch, step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 8):
            learner.step(batch, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@both_devices
def test_the_loss_reads_no_value(device: torch.device) -> None:
    """Without a dispatch mode: under one, autograd takes another way, which may have no read."""
    x, x_hat = (torch.rand(2, 3, 176, 176, device=device) for _ in range(2))
    likelihoods = torch.rand(2, 4, 11, 11, device=device, requires_grad=True)
    config = LossConfig("rd", "l1_msssim", 0.4, 0.01)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compute_loss(x, x_hat.requires_grad_(), likelihoods, config).total.backward()
    assert _READS.isdisjoint(event.key for event in seen.key_averages())


@pytest.mark.parametrize("outside", ["fp32", "tf32"])
@both_devices
def test_ms_ssim_and_its_gradient_are_those_of_float64(device: torch.device, outside: str) -> None:
    """Whatever the rest of the step does with fp32: TF32 would give errors near 1e-3, forward or backward."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(2, 3, 176, 176, generator=generator)
    y = (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0.02, 0.98)  # the loss clamps x_hat
    config = LossConfig("recon", "l1_msssim", 0.0, 0.0)
    exact_y = y.double().requires_grad_()
    exact = ms_ssim(exact_y, x.double(), floor=_FLOOR).mean()
    (exact_gradient,) = torch.autograd.grad(1 - exact, exact_y)
    ours_x, ours_y = (each.to(device, memory_format=torch.channels_last) for each in (x, y))
    ours_y.requires_grad_()
    likelihoods = torch.full((2, 1, 1, 1), 0.5, device=device)
    with tf32_as_in(outside):
        found = compute_loss(ours_x, ours_y, likelihoods, config)
        found.total.backward()
    assert found.ms_ssim.item() == pytest.approx(exact.item(), abs=5e-6)
    assert ours_y.grad is not None
    difference = ours_y.grad.double().cpu() - exact_gradient
    assert difference.norm() / exact_gradient.norm() < 1e-4


@pytest.mark.parametrize("flags", [(), ("--precondition",)], ids=["plain", "precondition"])
@both_devices
def test_fp32_steps_are_the_cpu_s(
    device: torch.device, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(EntropyBottleneck, "quantize", rounded)
    with tf32_as_in("fp32"):
        ours, theirs = (
            losses(learner_on(each, crops, tmp_path, "--amp", "false", *flags), batch_on(each))
            for each in (device, CPU)
        )
    assert ours == pytest.approx(theirs, rel=1e-3) and len(set(ours)) == 5


@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=needs_cuda, id="cuda")])
def test_ms_ssim_filters_with_the_depthwise_kernel(device: torch.device) -> None:
    """cuDNN's grouped convolution of channels_last tensors in fp32 is many times slower."""
    x, y = (torch.rand(16, 3, 224, 224, device=device).to(memory_format=torch.channels_last) for _ in range(2))
    likelihoods = torch.full((16, 1, 1, 1), 0.5, device=device)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        config = LossConfig("recon", "l1_msssim", 0.4, 0.0)
        compute_loss(x, y.requires_grad_(), likelihoods, config).total.backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::_conv_depthwise2d" in names and "aten::cudnn_convolution" not in names


@both_devices
def test_adam_gets_gradients_in_the_layout_of_their_parameters(
    device: torch.device, crops: Path, tmp_path: Path
) -> None:
    """Else its multi-tensor kernels go tensor by tensor, and its fused kernel raises."""
    learner = learner_on(device, crops, tmp_path, "--precondition", "--amp", "false")
    strides: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    parameters = learner.optimizer.param_groups[0]["params"]
    learner.optimizer.register_step_pre_hook(
        lambda *_: strides.extend((each.stride(), each.grad.stride()) for each in parameters)
    )
    learner.step(batch_on(device), 0)
    assert len(strides) == len(parameters) and all(ours == theirs for ours, theirs in strides)
    for group in learner.optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    learner.optimizer.state.clear()
    learner.step(batch_on(device), 1)


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=needs_cuda, id="cuda")])
def test_a_compiled_step_is_one_graph_and_computes_the_same(
    device: torch.device, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EntropyBottleneck, "quantize", rounded)
    flags, batch = ("--amp", "false"), batch_on(device)
    with tf32_as_in("fp32"):
        eager = losses(learner_on(device, crops, tmp_path, *flags), batch)
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        learner = learner_on(device, crops, tmp_path, "--compile", *flags)
        first = losses(learner, batch, 3)
        with torch.no_grad():  # a validation
            learner.model.eval()(batch.images)
        learner.model.train()
        learner.refresh_tables(3)
        with torch._dynamo.config.patch(error_on_recompile=True):
            later = [learner.step(batch, step).loss.total.item() for step in (3, 4)]
    assert first + later == pytest.approx(eager, rel=1e-3)
    assert not torch._dynamo.utils.counters["graph_break"]
