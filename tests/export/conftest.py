"""A tiny codec whose latents and images have realistic ranges, its checkpoints and its exports.

Torch is imported inside functions: tests that need none of these fixtures run without it.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from relic.arrays import Pixels
from relic.options import Parts

if TYPE_CHECKING:
    from relic.codec.checkpoint import Checkpoint

HEIGHT, WIDTH = 64, 80
"""The size of exports with a fixed size. It is not square, so that swapped sides are noticed."""

MakeCheckpoint = Callable[..., Path]
MakeExport = Callable[..., Path]


def smooth_image(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours with some texture, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: Pixels = np.clip(smooth + rng.integers(-8, 9, (height, width, 1)), 0, 255).astype(np.uint8)
    return pixels


def as_batch(*images: Pixels) -> npt.NDArray[np.float32]:
    """x (B, 3, H, W) in [0, 1]."""
    return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def tiny_codec(replaced: Parts, channels: tuple[int, int] = (8, 12)) -> "Checkpoint":
    """Random weights, scaled: latents take several integer values, medians are no integers, and images are greyish."""
    import torch

    from relic.codec.checkpoint import Checkpoint
    from relic.codec.entropy import refresh_tables
    from relic.codec.model import Architecture, build_model

    torch.manual_seed(sum(replaced.encode()))  # other parts, other entropy model
    architecture = Architecture(channels, replaced)
    model = build_model(architecture)
    x = torch.from_numpy(as_batch(smooth_image(96, 96), smooth_image(96, 96, 1)))
    with torch.no_grad():
        model.g_a[6].bias.zero_()
        model.g_a[6].weight.mul_(4 / model.g_a(x).std())
        medians = torch.rand(channels[1]) - 0.5
        model.entropy_bottleneck.quantiles[:, 0] = medians[:, None] + torch.tensor([-12.0, 0, 12.0])
        model.g_s[6].bias.zero_()
        model.g_s[6].weight.mul_(0.2 / model.g_s(model.g_a(x)).std())
        model.g_s[6].bias.fill_(0.5)
        refresh_tables(model, solve=False)
    return Checkpoint(architecture, model.state_dict(), metrics={"psnr_db": 30.0}, fingerprint="f" * 64)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A function from the replaced parts to a checkpoint file."""

    @functools.cache
    def make(replaced: Parts = "all") -> Path:
        from relic.codec.checkpoint import save_checkpoint

        path = tmp_path_factory.mktemp("checkpoints") / f"{replaced}.pt"
        save_checkpoint(path, tiny_codec(replaced))
        return path

    return make


@pytest.fixture(scope="session")
def make_export(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> MakeExport:
    """A function from the replaced parts to an export folder, of a fixed size or not."""

    @functools.cache
    def make(replaced: Parts = "all", *, dynamic: bool = False, upsample: str = "subpixel") -> Path:
        from export.onnx_parts import main

        folder = tmp_path_factory.mktemp("exports") / "new" / replaced
        size = [
            "--height",
            str(HEIGHT),
            "--width",
            str(WIDTH),
            *(["--dynamic"] if dynamic else []),
            "--upsample",
            upsample,
        ]
        assert main(["--ckpt", str(make_checkpoint(replaced)), "--part", "all", "--out", str(folder), *size]) == 0
        return folder

    return make
