"""The progress of a run, and the outputs for its numbers: the status line, `metrics.jsonl`, and W&B with --wandb."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from relic.distributed import World
from relic.files import append_text, atomic_write, finite
from relic.loader.loader import LoaderTimes
from train.learner import StepValues

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """The progress of a run, counted in images and steps."""

    epoch: int = 0
    """Finished epochs."""
    images: int = 0
    """Images of this epoch that are done, over all ranks."""
    images_seen: int = 0
    """Images of all epochs, over all ranks."""
    step: int = 0
    """Optimizer steps, including those that a GradScaler skipped."""


@dataclass
class StatusLine:
    """A progress bar over an epoch's images. The values of the steps stay on the device until `read` needs them."""

    progress: Progress
    epoch_images: int
    times: LoaderTimes
    world: World
    _values: list[torch.Tensor] = field(default_factory=list, init=False)
    _lr: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._bar = tqdm(
            total=self.epoch_images,
            initial=self.progress.images,
            desc=f"epoch {self.progress.epoch + 1}",
            unit="img",
            # Without a terminal the bar is off, and each status is a line in the log.
            disable=None if self.world.is_main else True,
            leave=False,
        )
        self._begin()

    def _begin(self) -> None:
        self._began = time.perf_counter()
        self._waited = self.times.wait
        self._images = self.progress.images_seen

    def add(self, values: StepValues, images: int) -> None:
        """Keep the values of a step, without reading them from the device."""
        loss = values.loss
        scalars = (loss.total, loss.distortion, loss.bpp, loss.psnr_db, loss.ms_ssim, values.grad_norm)
        self._values.append(torch.stack([scalar.float() for scalar in scalars]))
        self._lr = values.lr
        self._bar.update(images)

    def read(self) -> dict[str, Any]:
        """Means over the steps since the last call and over ranks, images/s, and the share of time spent waiting.

        Reads from the device once.
        """
        if not self._values:
            return {}
        means = torch.stack(self._values).mean(0)
        if self.world.size > 1:
            dist.all_reduce(means)
            means /= self.world.size
        names = ("loss", "distortion", "bpp", "psnr_db", "ms_ssim", "grad_norm")
        status = {name: value for name, value in zip(names, means.tolist(), strict=True) if math.isfinite(value)}
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        status["lr"] = self._lr
        status["images_per_second"] = (self.progress.images_seen - self._images) / elapsed
        status["wait_share"] = (self.times.wait - self._waited) / elapsed
        self._values.clear()
        self._begin()
        self._show(status)
        return status

    def _show(self, status: dict[str, Any]) -> None:
        if not self.world.is_main:
            return
        shown = {"loss": ".4f", "psnr_db": ".2f", "ms_ssim": ".4f", "bpp": ".3f", "lr": ".1e"}
        parts = [f"{name} {status[name]:{form}}" for name, form in shown.items() if name in status]
        parts += [f"{status['images_per_second']:.1f} img/s", f"waiting {status['wait_share']:.0%}"]
        if self._bar.disable:
            log.info("epoch %d step %d: %s", self.progress.epoch + 1, self.progress.step, ", ".join(parts))
        else:
            self._bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        self._bar.close()


class Tracker:
    """Writes the records of a run, on rank 0.

    A resumed run removes the lines of `metrics.jsonl` after the step it resumes from. A W&B failure never ends a run.
    """

    def __init__(
        self, folder: Path, *, config: dict[str, Any], use_wandb: bool, wandb_id: str | None, step: int
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._cut(step)
        self._wandb: Any = None
        self.wandb_id = wandb_id
        if use_wandb:
            self._start_wandb(config)

    def write(self, event: str, **values: Any) -> None:
        """Append a line: `event` (train, validate, start, ...), `step`, `epoch`, `images_seen` and more."""
        with append_text(self._path) as file:
            file.write(json.dumps(finite({"event": event, **values})) + "\n")
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self._to_wandb(lambda: self._wandb.log({**numbers, "step": values.get("step")}))

    def write_images(self, name: str, paths: list[Path], step: int) -> None:
        """Show reconstructions in W&B."""
        self._to_wandb(lambda: self._wandb.log({name: [_wandb_image(path) for path in paths], "step": step}))

    def close(self) -> None:
        self._to_wandb(lambda: self._wandb.finish())

    def _cut(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = (
            [line for line in self._path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
            if step
            else []
        )
        with atomic_write(self._path, "w") as file:
            file.writelines(line + "\n" for line in kept)

    def _start_wandb(self, config: dict[str, Any]) -> None:
        try:
            import wandb

            self._wandb = wandb.init(project="relic", id=self.wandb_id, resume="allow", config=config)
            self.wandb_id = self._wandb.id
            # W&B's own step only increases, so it would drop the steps that a resumed run repeats.
            self._wandb.define_metric("*", step_metric="step")
        except Exception as error:
            log.warning("W&B is off for this run: %s", error)

    def _to_wandb(self, call: Any) -> None:
        if self._wandb is None:
            return
        try:
            call()
        except Exception as error:
            log.warning("W&B is off from here on: %s", error)
            self._wandb = None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return float("inf")  # a line that was not written completely before a kill, or that is not ours


def _wandb_image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path), caption=path.stem)
