"""The swapped codec on a device: what mixed precision costs, and its calibration."""

from pathlib import Path

import pytest
import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from compressai.zoo.image import model_urls
from torch import Tensor

from benchmarks._gpu.learners import tf32_as_in
from relic.codec.model import replace_gdn_with_relu
from relic.codec.pixels import to_float
from relic.codec.precision import keep_in_fp32
from relic.codec.pretrained import load_codec
from relic.swap.calibrated import swap_calibrated
from relic.swap.refit import FittedLayer
from tests.cuda.devices import CPU, CUDA, both_devices, needs_cuda
from tests.swap.test_calibrated import photograph_crops

_NOISE_DB = 45.0
"""PSNR of the reconstruction against that of fp32. At 40 dB it costs 0.1 dB of a codec at 30 dB."""
_FLIPPED = 0.005
"""Share of latents that round to another integer than in fp32."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_ZOO_FILE = Path(torch.hub.get_dir(), "checkpoints", Path(model_urls["bmshj2018-factorized"]["mse"][8]).name)
each_codec = pytest.mark.parametrize(
    "source",
    [
        "embedded",
        pytest.param("zoo", marks=pytest.mark.skipif(not _ZOO_FILE.is_file(), reason="CompressAI's file is not here")),
    ],
)
"""CompressAI's codec has quality 8, the default of a run. It is not downloaded for a test."""


def calibrated(
    device: torch.device, crops: Tensor, source: str = "embedded"
) -> tuple[FactorizedPrior, list[FittedLayer]]:
    model = load_codec(source, quality=8, channels=None).build().to(device)
    fitted = swap_calibrated(model, "all", crops)
    replace_gdn_with_relu(model, "all")
    return model.eval(), fitted


@torch.no_grad()
def symbols_and_images(model: FactorizedPrior, x: Tensor) -> tuple[Tensor, Tensor]:
    return model.g_a(x).float().round(), model(x)["x_hat"].float().clamp(0, 1)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param(CPU, "tf32", id="cpu, which has no tf32"),
        pytest.param(CUDA, "tf32", id="tf32", marks=needs_cuda),
        pytest.param(CUDA, "fp16", id="fp16", marks=needs_cuda),
    ],
)
@each_codec
def test_a_faster_precision_does_not_drown_a_calibrated_codec(
    device: torch.device, precision: str, source: str
) -> None:
    """bf16 is not among them: under autocast on a CPU it left 39.6 dB, and 1.84 % of the latents flipped."""
    crops = photograph_crops(24)
    model, _ = calibrated(device, crops[:20], source)
    x = to_float(crops[20:].to(device))
    with tf32_as_in("fp32"):
        exact_symbols, exact_images = symbols_and_images(model, x)
    mixed = precision in _DTYPES
    keep_in_fp32(model, "entropy")
    with tf32_as_in(precision), torch.autocast(device.type, _DTYPES.get(precision, torch.bfloat16), enabled=mixed):
        symbols, images = symbols_and_images(model, x)
    noise = (images - exact_images).square().mean().clamp(min=1e-12)
    assert -10 * noise.log10().item() > _NOISE_DB
    assert (symbols != exact_symbols).float().mean().item() < _FLIPPED


@both_devices
@each_codec
def test_inputs_of_gdn_stay_where_fp16_can_square_them(device: torch.device, source: str) -> None:
    """The square of more than 256 is infinite in fp16, and GDN's output then zero, which no check can see."""
    model = load_codec(source, quality=8, channels=None).build().to(device).eval()
    largest: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, GDN):
            module.register_forward_pre_hook(lambda _, inputs: largest.append(inputs[0].abs().amax()))
    with torch.no_grad():
        model(to_float(photograph_crops(8).to(device)))
    assert len(largest) == 6 and 1 < torch.stack(largest).amax().item() < 256


@both_devices
def test_a_calibration_fits_as_on_the_cpu(device: torch.device) -> None:
    crops = photograph_crops(20)
    ours, theirs = ([layer.error for layer in calibrated(each, crops)[1]] for each in (device, CPU))
    assert ours == pytest.approx(theirs, rel=0.01) and len(ours) > 6
