"""A tiny codec with latents and pictures of a real one's size, its checkpoints and its exports."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from export.onnx_parts import main
from relic.codec.checkpoint import Checkpoint, save_checkpoint
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, build_model
from relic.options import Parts

HEIGHT, WIDTH = 64, 80
"""Of the exports with a fixed size: not square, so that swapped sides are seen."""

MakeCheckpoint = Callable[..., Path]
MakeExport = Callable[..., Path]
Pixels = npt.NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours with some texture, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: Pixels = np.clip(smooth + rng.integers(-8, 9, (height, width, 1)), 0, 255).astype(np.uint8)
    return pixels


def as_batch(*pictures: Pixels) -> npt.NDArray[np.float32]:
    """x (B, 3, H, W) in [0, 1]."""
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


@torch.no_grad()
def tiny_codec(replaced: Parts) -> Checkpoint:
    """Random weights, scaled so that latents spread over some integers, medians lie off them, and pictures are grey."""
    torch.manual_seed(sum(replaced.encode()))  # other parts, other entropy model
    architecture = Architecture((8, 12), replaced)
    model = build_model(architecture)
    x = torch.from_numpy(as_batch(picture(96, 96), picture(96, 96, 1)))
    model.g_a[6].bias.zero_()
    model.g_a[6].weight.mul_(4 / model.g_a(x).std())
    medians = torch.rand(12) - 0.5
    model.entropy_bottleneck.quantiles[:, 0] = medians[:, None] + torch.tensor([-12.0, 0, 12.0])
    model.g_s[6].bias.zero_()
    model.g_s[6].weight.mul_(0.2 / model.g_s(model.g_a(x)).std())
    model.g_s[6].bias.fill_(0.5)
    refresh_tables(model, solve=False)
    return Checkpoint(architecture, model.state_dict(), metrics={"psnr_db": 30.0}, fingerprint="f" * 64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth waking threads for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A function from the replaced parts to a checkpoint file."""

    @functools.cache
    def make(replaced: Parts = "all") -> Path:
        path = tmp_path_factory.mktemp("checkpoints") / f"{replaced}.pt"
        save_checkpoint(path, tiny_codec(replaced))
        return path

    return make


@pytest.fixture(scope="session")
def make_export(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> MakeExport:
    """A function from the replaced parts to an export folder, of a fixed size or not."""

    @functools.cache
    def make(replaced: Parts = "all", *, dynamic: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("exports") / "new" / replaced
        size = ["--height", str(HEIGHT), "--width", str(WIDTH), *(["--dynamic"] if dynamic else [])]
        assert main(["--ckpt", str(make_checkpoint(replaced)), "--part", "all", "--out", str(folder), *size]) == 0
        return folder

    return make
