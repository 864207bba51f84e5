"""Validate on every sample of the val split exactly once, in fp32, and write reconstructions as PNG."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from compressai.models import FactorizedPrior
from PIL import Image

from relic.codec.loss import LossConfig, image_losses
from relic.codec.metrics import score_images
from relic.codec.pixels import to_float, to_uint8
from relic.codec.precision import without_tf32
from relic.distributed import World, gather_to_all
from relic.files import atomic_write
from relic.loader.device_feed import feed_device
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches


class Validation(NamedTuple):
    """Means over the images of the split."""

    psnr_db: float
    ms_ssim: float
    bpp: float
    """Rate estimated from the likelihoods, bits per pixel."""
    loss: float
    num_images: int


@torch.no_grad()
def validate(
    model: FactorizedPrior, loader: ShardLoader, batch_size: int, loss_config: LossConfig, world: World
) -> Validation:
    """Score `model` on the loader's set, divided among the ranks. The model stays in its train or eval mode."""
    was_training = model.training
    model.eval()
    rows: list[tuple[float, float, float, float]] = []
    plan = eval_batches(loader.shards.num_samples, batch_size, world.rank, world.size)
    for batch in feed_device(loader.batches(plan), world.device, to_float):
        with without_tf32():  # the evaluator does the same and must give the same numbers
            output = model(batch.images)
        likelihoods = output["likelihoods"]["y"]
        scores = score_images(batch.images, output["x_hat"], likelihoods)
        losses = image_losses(batch.images, output["x_hat"], likelihoods, loss_config)
        columns = (*scores, losses.double().cpu())
        rows += zip(*(column.tolist() for column in columns), strict=True)
    model.train(was_training)
    # The rows are in sample order, so the means do not depend on the number of ranks.
    every = torch.tensor([row for part in gather_to_all(rows, world) for row in part], dtype=torch.float64)
    psnr_db, ms_ssim, bpp, loss = every.mean(0).tolist()
    return Validation(psnr_db, ms_ssim, bpp, loss, len(every))


@torch.no_grad()
def write_reconstructions(
    model: FactorizedPrior, loader: ShardLoader, folder: Path, name: str, count: int, device: torch.device
) -> list[Path]:
    """Write `folder/name/NNN.png` for the first `count` images, and their originals as `folder/origin/NNN.png`.

    Removes other PNGs in these two folders, which an earlier run with a larger `count` left.
    """
    was_training = model.training
    model.eval()
    indices = np.arange(min(count, loader.shards.num_samples))
    paths: list[Path] = []
    for batch in loader.batches(indices[i : i + 1] for i in range(len(indices))):
        with without_tf32():
            x_hat = to_uint8(model(to_float(batch.images.to(device)))["x_hat"]).cpu()
        number = f"{len(paths):03d}.png"
        _save(folder / "origin" / number, batch.images)
        paths.append(_save(folder / name / number, x_hat))
    model.train(was_training)
    for stale in {*folder.glob("origin/*.png"), *folder.glob(f"{name}/*.png")}:
        if stale.name not in {path.name for path in paths}:
            stale.unlink()
    return paths


def _save(path: Path, images_BHWC: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(images_BHWC[0].numpy()).save(file, "PNG")
    return path
