"""Reconstructions of the first validation images as PNG, to look at."""

from pathlib import Path

import numpy as np
import torch
from compressai.models import FactorizedPrior
from PIL import Image

from relic.codec.pixels import to_float, to_uint8
from relic.codec.precision import without_tf32
from relic.loader.loader import ShardLoader


@torch.no_grad()
def write_reconstructions(
    model: FactorizedPrior, loader: ShardLoader, folder: Path, name: str, count: int, device: torch.device
) -> list[Path]:
    """Write `folder/name/NNN.png` for the first `count` images, and their originals as `folder/origin/NNN.png`.

    Other pictures in the two folders, left by a run that made more of them, are removed.
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
    Image.fromarray(images_BHWC[0].numpy()).save(path)
    return path
