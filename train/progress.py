"""Where a run stands, and the status it shows."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from relic.distributed import World
from relic.loader.loader import LoaderTimes
from train.step import StepValues

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Counted in images; `step` counts the optimizer steps attempted."""

    epoch: int = 0
    """Epochs done."""
    images: int = 0
    """Images of this epoch done, over all ranks."""
    images_seen: int = 0
    """Images of all epochs."""
    step: int = 0


class StatusLine:
    """A progress bar over an epoch's images; values of the steps stay on the device until a line is due."""

    def __init__(self, progress: Progress, epoch_images: int, times: LoaderTimes, world: World) -> None:
        self._progress, self._times, self._world = progress, times, world
        title = f"epoch {progress.epoch + 1}"
        # Without a terminal the bar is off and each status becomes a line of the log.
        off = None if world.is_main else True
        self._bar = tqdm(total=epoch_images, initial=progress.images, desc=title, unit="img", disable=off, leave=False)
        self._values: list[torch.Tensor] = []
        self._lr = 0.0
        self._begin()

    def _begin(self) -> None:
        self._began, self._waited, self._images = time.perf_counter(), self._times.wait, self._progress.images_seen

    def add(self, values: StepValues, images: int) -> None:
        """Take in a step's values without reading them."""
        loss = values.loss
        scalars = (loss.total, loss.distortion, loss.bpp, loss.psnr_db, loss.ms_ssim, values.grad_norm)
        self._values.append(torch.stack([scalar.float() for scalar in scalars]))
        self._lr = values.lr
        self._bar.update(images)

    def read(self) -> dict[str, Any]:
        """Means since the last call over steps and ranks, speed and share of time spent waiting; one device read."""
        if not self._values:
            return {}
        means = torch.stack(self._values).mean(0)
        if self._world.size > 1:
            dist.all_reduce(means)
            means /= self._world.size
        names = ("loss", "distortion", "bpp", "psnr_db", "ms_ssim", "grad_norm")
        status = {name: value for name, value in zip(names, means.tolist(), strict=True) if math.isfinite(value)}
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        status["lr"] = self._lr
        status["images_per_second"] = (self._progress.images_seen - self._images) / elapsed
        status["wait_share"] = (self._times.wait - self._waited) / elapsed
        self._values.clear()
        self._begin()
        self._show(status)
        return status

    def _show(self, status: dict[str, Any]) -> None:
        if not self._world.is_main:
            return
        shown = {"loss": ".4f", "psnr_db": ".2f", "ms_ssim": ".4f", "bpp": ".3f", "lr": ".1e"}
        parts = [f"{name} {status[name]:{form}}" for name, form in shown.items() if name in status]
        parts += [f"{status['images_per_second']:.1f} img/s", f"waiting {status['wait_share']:.0%}"]
        if self._bar.disable:
            log.info("epoch %d step %d: %s", self._progress.epoch + 1, self._progress.step, ", ".join(parts))
        else:
            self._bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        self._bar.close()
