"""Losses and metrics against closed forms, numpy, pytorch_msssim and finite differences, also for hard inputs."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as their_ms_ssim
from skimage.metrics import peak_signal_noise_ratio
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import relic.codec.ms_ssim
from relic.codec.loss import LossConfig, compute_loss, image_losses, loss_formula
from relic.codec.metrics import score_images
from relic.codec.ms_ssim import WEIGHTS, _cached_constants, ms_ssim, weighted_product
from relic.codec.pixels import round_to_8bit, to_float, to_uint8

SIDE = 176


def pictures(count: int = 2, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    coarse = torch.rand(count, 3, 11, 11)
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic").clamp(0, 1)


def test_pixels_survive_the_way_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(1, 16, 16, 3)
    x = to_float(levels)
    assert x.shape == (1, 3, 16, 16) and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(round_to_8bit(x + 0.0019), x) and torch.equal(round_to_8bit(x - 0.0019), x)
    assert to_uint8(torch.tensor([-0.3, 1.7, 0.5]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_loss_is_the_formula() -> None:
    x, likelihoods = pictures(), torch.rand(2, 5, 11, 11).clamp(min=1e-3)
    x_hat = x + 0.05 * torch.randn_like(x)  # outside [0, 1] in part: L1 uses that, MS-SSIM does not
    bits = sum(-math.log2(p) for p in likelihoods.flatten().tolist())
    bpp = bits / (2 * SIDE * SIDE)
    similarity = their_ms_ssim(x_hat.clamp(0, 1), x, data_range=1.0).item()
    l1 = np.abs(x_hat.numpy() - x.numpy()).mean()
    expected = 0.3 * l1 + 0.7 * (1 - similarity)
    recon = compute_loss(x, x_hat, likelihoods, LossConfig("recon", "l1_msssim", 0.3, 0.5))
    rd = compute_loss(x, x_hat, likelihoods, LossConfig("rd", "l1_msssim", 0.3, 0.5))
    mse = compute_loss(x, x_hat, likelihoods, LossConfig("rd", "mse", 0.3, 0.5))
    assert recon.total.item() == pytest.approx(expected, rel=1e-5)
    assert rd.total.item() == pytest.approx(expected + 0.5 * bpp, rel=1e-5)
    assert mse.total.item() == pytest.approx(np.square(x_hat.numpy() - x.numpy()).mean() + 0.5 * bpp, rel=1e-5)
    assert rd.bpp.item() == pytest.approx(bpp, rel=1e-5)
    assert recon.ms_ssim.item() == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_ms_ssim_of_measurements_is_that_of_pytorch_msssim(noise: float) -> None:
    x = pictures(3).double()
    y = (x + noise * torch.randn_like(x)).clamp(0, 1)
    theirs = their_ms_ssim(x, y, data_range=1.0, size_average=False)
    assert torch.allclose(ms_ssim(x, y), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("noise", [0.003, 0.01, 0.1, 0.3])
def test_ms_ssim_and_its_gradient_are_those_of_pytorch_msssim_in_float64(noise: float, floor: float) -> None:
    x = pictures(3)
    y = (x + noise * torch.randn_like(x)).clamp(0, 1)
    wide = y.double().requires_grad_()
    theirs = their_ms_ssim(wide, x.double(), data_range=1.0, size_average=False)
    (wanted,) = torch.autograd.grad(theirs.sum(), wide)
    y.requires_grad_()
    ours = ms_ssim(y, x, floor=floor)
    (found,) = torch.autograd.grad(ours.sum(), y)
    assert torch.allclose(ours.double(), theirs, atol=3e-7)
    assert float((found - wanted).norm() / wanted.norm()) < 2e-5  # pytorch_msssim in float32: 6e-5 with little noise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(176, 176), (161, 190), (177, 163)])
def test_the_gradient_written_out_is_that_of_autograd_for_each_size_and_layout(
    height: int, width: int, layout: torch.memory_format
) -> None:
    """Sides of even and odd scales. Each image and channel has an upstream gradient of its own."""
    torch.manual_seed(3)
    coarse = torch.rand(3, 3, 12, 12, dtype=torch.float64)
    x = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").to(memory_format=layout)
    y = (x + 0.05 * torch.randn_like(x)).requires_grad_()
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(their_ms_ssim(y, x, data_range=1.0, size_average=False), y, upstream)
    (found,) = torch.autograd.grad(ms_ssim(y, x), y, upstream)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-15) and found.stride() == y.stride()
    (narrow,) = torch.autograd.grad(ms_ssim(y.float(), x.float()), y, upstream.float())
    assert float((narrow - wanted).norm() / wanted.norm()) < 2e-5


def test_the_gradient_written_out_is_that_of_finite_differences() -> None:
    """With the luminance far from that of the other image, which pytorch_msssim's figures hardly show."""
    x = pictures(2).double()
    y = (0.5 * x + 0.2 + 0.02 * torch.randn_like(x)).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: ms_ssim(images, x), y, fast_mode=True)


def test_ms_ssim_has_no_second_derivative_and_says_so() -> None:
    y = pictures(seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(ms_ssim(y, pictures()).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_gradient_of_the_product_is_that_of_torch_prod() -> None:
    """The route was changed, the value was not: `torch.prod` of the same terms, in float32."""
    torch.manual_seed(2)
    weights = torch.tensor(WEIGHTS).view(-1, 1, 1)
    terms = torch.rand(5, 8, 3).clamp(min=1e-3).requires_grad_()
    (wanted,) = torch.autograd.grad(torch.prod(terms**weights, dim=0).sum(), terms)
    (found,) = torch.autograd.grad(weighted_product(terms, weights).sum(), terms)
    assert torch.allclose(weighted_product(terms, weights), torch.prod(terms**weights, dim=0), rtol=1e-6)
    assert torch.allclose(found, wanted, rtol=5e-6)


def test_no_value_is_read_from_the_device_to_compute_the_loss_and_its_gradient() -> None:
    """Without a dispatch mode: under one, autograd takes other branches, for example in the backward pass of `prod`."""
    x_hat = pictures(seed=1).requires_grad_()
    likelihoods = torch.rand(2, 5, 11, 11).clamp(min=1e-3).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compute_loss(pictures(), x_hat, likelihoods, LossConfig("rd", "l1_msssim", 0.4, 0.1)).total.backward()
    names = {event.key for event in seen.key_averages()}
    assert "_LossesBackward" in names
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


@pytest.mark.parametrize("distortion", ["l1_msssim", "mse"])
def test_losses_per_image_are_those_of_the_images_alone(distortion: Any) -> None:
    x, likelihoods = pictures(3), torch.rand(3, 5, 11, 11).clamp(min=1e-3)
    x_hat = x + torch.tensor([0.01, 0.05, 0.2]).view(3, 1, 1, 1) * torch.randn_like(x)
    config = LossConfig("rd", distortion, 0.3, 0.5)
    alone = [compute_loss(x[i:][:1], x_hat[i:][:1], likelihoods[i:][:1], config).total for i in range(3)]
    found = image_losses(x, x_hat, likelihoods, config)
    assert torch.allclose(found, torch.stack(alone), rtol=1e-6) and len(set(found.tolist())) == 3


def test_a_compiled_loss_is_one_graph_with_the_same_gradient() -> None:
    """`fullgraph` raises where the graph would break. `aot_eager` runs it with torch's own kernels."""
    config, x, likelihoods = LossConfig("rd", "l1_msssim", 0.3, 0.5), pictures(), torch.rand(2, 5, 11, 11).clamp(1e-3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    formula = torch.compile(loss_formula, fullgraph=True, backend="aot_eager")
    found = []
    for chosen in (formula, formula, None):
        x_hat = pictures(seed=1).requires_grad_()
        total = compute_loss(x, x_hat, likelihoods, config, chosen).total
        total.backward()
        assert x_hat.grad is not None
        found.append((total.detach(), x_hat.grad))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (total, gradient), compiled = found[2], found[:2]
    assert all(torch.equal(again, total) for again, _ in compiled)
    assert all(float((again - gradient).norm() / gradient.norm()) < 3e-6 for _, again in compiled)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_cuda_the_filters_take_the_depthwise_kernel(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown without a GPU, by torch's own choice of the kernel for tensors that only claim to be on one."""

    class Convolutions(TorchDispatchMode):
        """The arguments of each convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default:
                self.seen.append(args)
            return func(*args, **(kwargs or {}))

    def kernel(values: torch.Tensor, window: torch.Tensor, *options: Any) -> str:
        with FakeTensorMode():
            on_cuda = [torch.empty_strided(each.shape, each.stride(), device="cuda") for each in (values, window)]
            return str(torch._C._select_conv_backend(*on_cuda, *options).name)

    monkeypatch.setattr(relic.codec.ms_ssim, "_constants", _cached_constants.__wrapped__)
    with FakeTensorMode(), Convolutions() as fake:
        x, y = (torch.rand(16, 3, 224, 224, device="cuda").to(memory_format=layout) for _ in range(2))
        ms_ssim(x, y, floor=1e-6)
        # `kernel` tells them apart: this is the slow one.
        torch.nn.functional.conv2d(
            y.to(memory_format=torch.channels_last), torch.ones(3, 1, 1, 11, device="cuda"), groups=3
        )
    *found, slow = (kernel(*arguments) for arguments in fake.seen)
    assert found == ["CudaDepthwise2d"] * 10 and slow == "Cudnn"

    # Autograd needs a real device. On `meta` the tensors have the same layouts as on CUDA.
    with Convolutions() as meta:
        x, y = (torch.empty(16, 3, 224, 224, device="meta").to(memory_format=layout) for _ in range(2))
        torch.autograd.grad(ms_ssim(y.requires_grad_(), x, floor=1e-6).sum(), y)
    assert [kernel(*arguments) for arguments in meta.seen] == ["CudaDepthwise2d"] * 20


@pytest.mark.parametrize("name", ["inverse", "constant", "noise", "equal", "far out of range"])
def test_loss_and_gradient_are_finite_and_something_is_left_to_learn_from(name: str) -> None:
    x = pictures()
    x_hat = {
        "inverse": 1 - x,
        "constant": torch.full_like(x, 0.5),
        "noise": torch.rand_like(x),
        "equal": x.clone(),
        "far out of range": x * 20 - 10,
    }[name].requires_grad_()
    loss = compute_loss(x, x_hat, torch.ones(2, 1, 1, 1), LossConfig("recon", "l1_msssim", 0.4, 0.0)).total
    loss.backward()
    assert torch.isfinite(loss) and x_hat.grad is not None and torch.isfinite(x_hat.grad).all()
    if name != "equal":
        assert (x_hat.grad != 0).float().mean() > 0.9


def test_tf32_is_off_in_the_loss_and_its_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Switches(TorchDispatchMode):
        """The TF32 setting at each convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.on: list[bool] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in func.name():
                self.on.append(torch.backends.cudnn.allow_tf32)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x_hat = pictures(seed=1).requires_grad_()
    with Switches() as switches:
        compute_loss(
            pictures(), x_hat, torch.ones(2, 1, 1, 1), LossConfig("rd", "l1_msssim", 0.4, 0.1)
        ).total.backward()
        assert torch.backends.cudnn.allow_tf32
    assert len(switches.on) == 20 and not any(switches.on)  # 10 of them in the backward pass


@pytest.mark.parametrize("loss_type", ["recon", "rd"])
def test_gradients_are_those_of_the_formula_however_scaled(loss_type: Literal["recon", "rd"]) -> None:
    def leaves() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [(pictures() + 0.1 * torch.randn(2, 3, SIDE, SIDE)).requires_grad_(),
                torch.rand(2, 5, 11, 11).clamp(min=1e-3).requires_grad_()]  # fmt: skip

    x, (x_hat, likelihoods), (x_hat_again, likelihoods_again) = pictures(), leaves(), leaves()
    total = compute_loss(x, x_hat, likelihoods, LossConfig(loss_type, "l1_msssim", 0.3, 0.5)).total
    (1024 * total).backward()
    similarity = their_ms_ssim(x_hat_again.clamp(0, 1), x, data_range=1.0)
    again = 0.3 * (x_hat_again - x).abs().mean() + 0.7 * (1 - similarity)
    if loss_type == "rd":
        again = again - 0.5 * torch.log2(likelihoods_again).sum() / (2 * SIDE * SIDE)
    again.backward()
    assert x_hat.grad is not None and x_hat_again.grad is not None
    assert torch.allclose(x_hat.grad / 1024, x_hat_again.grad, rtol=1e-3, atol=1e-9)
    if loss_type == "recon":
        assert likelihoods.grad is None
    else:
        assert likelihoods.grad is not None and likelihoods_again.grad is not None
        assert torch.allclose(likelihoods.grad / 1024, likelihoods_again.grad, rtol=1e-5)


def test_gradients_too_small_for_fp16_live_on_once_scaled() -> None:
    x_hat = pictures(seed=1).half().requires_grad_()
    total = compute_loss(pictures(), x_hat, torch.ones(2, 1, 1, 1), LossConfig("recon", "mse", 0.4, 0.0)).total
    (total * 65536).backward()
    wide = pictures(seed=1).half().float().requires_grad_()
    torch.nn.functional.mse_loss(wide, pictures()).backward()
    assert x_hat.grad is not None and wide.grad is not None
    assert torch.allclose(x_hat.grad.float() / 65536, wide.grad, rtol=2e-3, atol=1e-9)


def test_scores_are_what_other_libraries_say_of_8_bit_pixels() -> None:
    x = to_float(to_uint8(pictures(3)))
    x_hat = x + 0.03 * torch.randn_like(x)
    likelihoods = torch.rand(3, 4, 11, 11).clamp(min=1e-3)
    scores = score_images(x, x_hat, likelihoods)
    for i in range(3):
        ours, theirs = (to_uint8(image[i : i + 1])[0].numpy() for image in (x, x_hat))
        assert scores.psnr_db[i].item() == pytest.approx(peak_signal_noise_ratio(ours, theirs), abs=1e-4)
        as_float = [to_float(torch.from_numpy(image)[None]) * 255 for image in (ours, theirs)]
        assert scores.ms_ssim[i].item() == pytest.approx(their_ms_ssim(*as_float, data_range=255).item(), abs=1e-6)
        bits = -np.log2(likelihoods[i].double().numpy()).sum()
        assert scores.bpp[i].item() == pytest.approx(bits / SIDE**2, rel=1e-5)


def test_ms_ssim_of_an_even_white_image_is_exact() -> None:
    """A sheet of paper: in float32 its small variance is lost beside its large squared mean."""
    torch.manual_seed(0)
    white = 250 + (torch.rand(1, 1, 177, 200) < 0.3).double().expand(1, 3, 177, 200)
    decoded = 250 + (torch.rand(1, 1, 177, 200) < 0.3).double().expand(1, 3, 177, 200)
    theirs = their_ms_ssim(white, decoded, data_range=255).item()
    x, x_hat = (to_float(levels.permute(0, 2, 3, 1).to(torch.uint8)) for levels in (white, decoded))
    assert score_images(x, x_hat, torch.ones(1, 1, 1, 1)).ms_ssim.item() == pytest.approx(theirs, abs=1e-8)


def test_small_images_have_no_ms_ssim() -> None:
    x = round_to_8bit(torch.rand(2, 3, 160, 400))
    scores = score_images(x, x, torch.ones(2, 1, 1, 1))
    assert scores.ms_ssim.isnan().all() and scores.psnr_db.isinf().all()
