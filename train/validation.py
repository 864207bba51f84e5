"""Validate on every sample of the val split exactly once, in fp32, with the evaluator's metrics."""

from typing import NamedTuple

import torch
from compressai.models import FactorizedPrior

from relic.codec.loss import LossConfig, compute_loss
from relic.codec.metrics import score_images
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.distributed import World, gather_to_all
from relic.loader.feed import feed_device
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches


class Validation(NamedTuple):
    """Means over the images of the split."""

    psnr_db: float
    ms_ssim: float
    bpp: float
    """Estimated from the likelihoods."""
    loss: float
    num_images: int


@torch.no_grad()
def validate(
    model: FactorizedPrior, loader: ShardLoader, batch_size: int, loss_config: LossConfig, world: World
) -> Validation:
    """Score `model` (left in the mode it was in) on the loader's set, shared out over the ranks."""
    was_training = model.training
    model.eval()
    rows: list[tuple[float, float, float, float]] = []
    plan = eval_batches(loader.shards.num_samples, batch_size, world.rank, world.size)
    for batch in feed_device(loader.batches(plan), world.device, to_float):
        with without_tf32():  # as in the evaluator, which has to give the same numbers
            output = model(batch.images)
        likelihoods = output["likelihoods"]["y"]
        scores = score_images(batch.images, output["x_hat"], likelihoods)
        losses = [
            compute_loss(batch.images[i : i + 1], output["x_hat"][i : i + 1], likelihoods[i : i + 1], loss_config).total
            for i in range(len(batch.keys))
        ]
        columns = (*scores, torch.stack(losses).double().cpu())
        rows += zip(*(column.tolist() for column in columns), strict=True)
    model.train(was_training)
    # Rank order is sample order, so the sums do not depend on the number of ranks.
    every = torch.tensor([row for part in gather_to_all(rows, world) for row in part], dtype=torch.float64)
    psnr_db, ms_ssim, bpp, loss = every.mean(0).tolist()
    return Validation(psnr_db, ms_ssim, bpp, loss, len(every))
