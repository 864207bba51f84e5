"""The default precision of CUDA, under autocast on a CPU: it rounds at the same places."""

import copy

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from PIL import Image
from torch import Tensor

from relic.cli import parse
from relic.codec.entropy import medians_of, round_about_medians
from relic.codec.model import replace_gdn_with_relu
from relic.codec.pixels import round_to_8bit, to_float
from relic.codec.precision import keep_in_fp32
from relic.codec.pretrained import load_codec
from relic.options import Parts
from relic.swap.calibrated import swap_calibrated
from samples.photographs import TRAIN, write_windows
from train.arithmetic import mixed_dtype
from train.config import TrainConfig


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """24 crops of photographs, uint8 (B, 224, 224, 3)."""
    folder = tmp_path_factory.mktemp("photographs") / "train"
    write_windows(TRAIN, folder, 24, seed=0)
    pixels = [np.asarray(Image.open(path))[:224, :224] for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(pixels))


@torch.no_grad()
def latents_and_psnr(model: FactorizedPrior, x: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, float]:
    model = copy.deepcopy(model)
    if dtype:
        keep_in_fp32(model, "entropy", dtype=dtype)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        y_hat = round_about_medians(model.g_a(x).float(), medians_of(model))
        x_hat = model.g_s(y_hat).float()
    squared = (round_to_8bit(x_hat) - x).double().square().flatten(1).mean(1)
    return y_hat, float((-10 * torch.log10(squared)).mean())


@pytest.mark.commands
@pytest.mark.parametrize("parts", ["none", "encoder", "all"])
def test_the_default_is_within_0_02_db_of_fp32(crops: Tensor, parts: Parts) -> None:
    config = parse(TrainConfig, ["--shards", "unused"], prog="train")
    default = mixed_dtype(True, config.amp_dtype, torch.device("cpu"))
    model = load_codec("embedded", quality=1, channels=None).build()
    if parts != "none":
        swap_calibrated(model, parts, crops[:16])
        replace_gdn_with_relu(model, parts)
    x = to_float(crops[16:])
    (plain, psnr_db), (mixed, mixed_psnr_db), (coarse, _) = (
        latents_and_psnr(model.eval(), x, dtype) for dtype in (None, default, torch.bfloat16)
    )
    assert abs(psnr_db - mixed_psnr_db) < 0.02
    moved, moved_by_bf16 = (float((other != plain).double().mean()) for other in (mixed, coarse))
    assert moved < 0.005 and moved_by_bf16 > 4 * moved
