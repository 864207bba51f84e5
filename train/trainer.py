"""The training loop: epochs of steps, and between them quantiles, validation, pictures and checkpoints."""

import logging
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from compressai.models import FactorizedPrior

from relic.codec.checkpoint import Checkpoint, random_state, restore_random_state, save_checkpoint
from relic.codec.entropy import refresh_tables
from relic.codec.loss import LossConfig
from relic.codec.model import Architecture
from relic.codec.pixels import to_float
from relic.distributed import World, gather_to_all, wait_for_all
from relic.loader.feed import DeviceBatch, feed_device
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from train.config import TrainConfig
from train.guard import WAYS_OUT, DivergedError, Guard, StopRequested
from train.preconditioning import Preconditioning
from train.progress import Progress, StatusLine
from train.reconstructions import write_reconstructions
from train.schedule import Schedule
from train.step import StepValues
from train.tracking import Tracker
from train.validation import Validation, validate

log = logging.getLogger(__name__)


class Learner(NamedTuple):
    """What changes while training, besides the progress."""

    model: FactorizedPrior
    architecture: Architecture
    swap_init: str
    entropy_trained: bool
    """Whether the entropy bottleneck is trained, and so its quantiles are solved again."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    guard: Guard
    stepper: Callable[[DeviceBatch, int, int], StepValues]
    loss_config: LossConfig
    preconditioning: Preconditioning | None = None


class Trainer:
    """Runs the epochs a config asks for, from wherever `resume_from` set it."""

    def __init__(
        self, config: TrainConfig, world: World, learner: Learner, train_loader: ShardLoader, val_loader: ShardLoader
    ) -> None:
        self._config, self._world, self._learner = config, world, learner
        self._train_loader, self._val_loader = train_loader, val_loader
        self.progress = Progress()
        self._best_ms_ssim, self._best_loss = float("-inf"), float("inf")
        self._tables_step = -1
        self.wandb_id: str | None = None

    def run(self, tracker: Tracker | None, config_values: dict[str, Any]) -> Validation | None:
        """Train to the last epoch and return its validation; None when a signal ended the run (after saving)."""
        self._tracker, self._config_values = tracker, config_values
        self._track("start", **config_values)
        with _stop_on_signals(self._learner.guard):
            try:
                result = self._first_look() if self.progress.step == 0 else None
                while self.progress.epoch < self._config.epochs:
                    self._train_epoch()
                    result = self._finish_epoch()
                return result or self._validate()
            except StopRequested:
                self._save("last.pt", training=True)
                self._say(f"stopped at step {self.progress.step}; --resume auto goes on from there")
                return None

    def _first_look(self) -> Validation:
        """Validate and picture the model before its first step; with --epochs 0 this is all."""
        result = self._validate()
        if self._config.recon_every:
            self._picture(f"pre_e{self.progress.epoch:03d}")
        # A calibrated start is good: training has to beat it.
        self._keep_best(result)
        if not self._config.epochs:
            self._save("last.pt", training=True)
        return result

    def _train_epoch(self) -> None:
        config, progress, learner = self._config, self.progress, self._learner
        order = epoch_order(self._train_loader.shards.samples, config.seed, progress.epoch, config.shuffle_window)
        plan = train_batches(order, config.batch_size, self._world.rank, self._world.size, progress.images)
        epoch_images = len(order) // config.batch_size * config.batch_size
        status = StatusLine(progress, epoch_images, self._train_loader.times, self._world)
        learner.model.train()
        try:
            for batch in feed_device(self._train_loader.batches(plan), self._world.device, to_float):
                try:
                    values = learner.stepper(batch, progress.step, progress.epoch)
                finally:
                    # A stop is raised after the optimizer's step: the state is that of a whole step.
                    progress.step += 1
                    progress.images += config.batch_size
                    progress.images_seen += config.batch_size
                status.add(values, config.batch_size)
                if progress.step % config.log_every == 0:
                    self._track("train", **status.read())
                every = config.validate_every_steps
                if every and progress.step % every == 0 and progress.images < epoch_images:
                    learner.guard.settle()
                    self._validate()
                # Last, so that a run resumed from here has all that came before in its records.
                if config.save_every_steps and progress.step % config.save_every_steps == 0:
                    self._save("last.pt", training=True)
            self._track("train", **status.read())
        finally:
            status.close()

    def _finish_epoch(self) -> Validation:
        config, progress = self._config, self.progress
        # Before the validation: who is told to stop meanwhile may have seconds left, not the time for a new epoch.
        self._save("last.pt", training=True)
        progress.epoch, progress.images = progress.epoch + 1, 0
        result = self._validate()
        self._learner.schedule.epoch_done(result.ms_ssim)
        self._keep_best(result)
        if config.recon_every and (progress.epoch % config.recon_every == 0 or progress.epoch == config.epochs):
            self._picture(f"e{progress.epoch:03d}")
        self._save("last.pt", training=True)
        return result

    def _validate(self) -> Validation:
        learner = self._learner
        self._refresh_tables()
        batch_size = self._config.batch_size // self._world.size
        result = validate(learner.model, self._val_loader, batch_size, learner.loss_config, self._world)
        if not math.isfinite(result.loss):
            raise DivergedError(f"validation after step {self.progress.step}: the loss is not finite; {WAYS_OUT}")
        self._track("validate", **result._asdict())
        self._say(
            f"epoch {self.progress.epoch}: validation PSNR {result.psnr_db:.2f} dB, MS-SSIM {result.ms_ssim:.4f}, "
            f"estimated {result.bpp:.3f} bpp, loss {result.loss:.4f} ({result.num_images} images)"
        )
        return result

    def _keep_best(self, result: Validation) -> None:
        if result.ms_ssim > self._best_ms_ssim:
            self._best_ms_ssim = result.ms_ssim
            self._save("best_msssim.pt", training=False, metrics=result._asdict())
        if result.loss < self._best_loss:
            self._best_loss = result.loss
            self._save("best_loss.pt", training=False, metrics=result._asdict())

    def _picture(self, name: str) -> None:
        if self._world.is_main and self._config.recon_count:
            folder, count = self._config.recon_dir, self._config.recon_count
            paths = write_reconstructions(
                self._learner.model, self._val_loader, folder, name, count, self._world.device
            )
            if self._tracker:
                self._tracker.write_images("recon", paths, self.progress.step)
        wait_for_all(self._world)

    def _save(self, name: str, *, training: bool, metrics: dict[str, float] | None = None) -> None:
        """Write a checkpoint on rank 0, never after a step that diverged. `training`: one a run can go on from."""
        learner = self._learner
        learner.guard.settle()
        self._check_weights()
        self._refresh_tables()
        random_states = gather_to_all(random_state(), self._world) if training else []
        if self._world.is_main:
            checkpoint = Checkpoint(
                architecture=learner.architecture,
                model=learner.model.state_dict(),
                swap_init=learner.swap_init,
                train_scope=self._config.train_scope,
                loss_type=self._config.loss_type,
                config=self._config_values,
                metrics=metrics or {},
                fingerprint=self._train_loader.shards.fingerprint,
                training=self._training_state(random_states) if training else None,
            )
            save_checkpoint(self._config.save_dir / name, checkpoint)
        wait_for_all(self._world)

    def _refresh_tables(self) -> None:
        """Solve and make the tables once for each state of the weights: at an epoch's end several files hold them."""
        if self._tables_step != self.progress.step:
            refresh_tables(self._learner.model, solve=self._learner.entropy_trained)
            self._tables_step = self.progress.step

    def _check_weights(self) -> None:
        """Raise DivergedError when the last step left weights that no forward pass can be made with."""
        largest = [parameter.detach().abs().amax() for parameter in self._learner.model.parameters()]
        # Not a number compares as false, so it is refused too.
        if self._config.overflow_check and not bool(torch.stack(largest).max() <= self._config.overflow_tol):
            raise DivergedError(
                f"step {self.progress.step - 1}: it left weights not finite or over the limit; {WAYS_OUT}"
            )

    def _training_state(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        learner = self._learner
        return {
            "optimizer": learner.optimizer.state_dict(),
            "preconditioning": learner.preconditioning.state_dict() if learner.preconditioning else None,
            "scaler": learner.scaler.state_dict(),
            "schedule": learner.schedule.state_dict(),
            "progress": vars(self.progress).copy(),
            "best_ms_ssim": self._best_ms_ssim,
            "best_loss": self._best_loss,
            "random": random_states,
            "wandb_id": self._tracker.wandb_id if self._tracker else None,
        }

    def load_training_state(self, state: dict[str, Any], *, keep_bests: bool) -> None:
        """Continue from what a checkpoint kept beside the weights.

        `keep_bests`: the best checkpoints so far lie in this run's folder, so new ones have to beat them.
        """
        learner = self._learner
        learner.optimizer.load_state_dict(state["optimizer"])
        if learner.preconditioning:
            learner.preconditioning.load_state_dict(state["preconditioning"])
        if state["scaler"]:  # empty of a run without one
            learner.scaler.load_state_dict(state["scaler"])
        learner.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        if keep_bests:
            self._best_ms_ssim, self._best_loss = state["best_ms_ssim"], state["best_loss"]
        self.wandb_id = state["wandb_id"]
        if self._world.rank < len(state["random"]):
            restore_random_state(state["random"][self._world.rank])

    def _track(self, event: str, **values: Any) -> None:
        if self._tracker and values:
            progress = {name: getattr(self.progress, name) for name in ("step", "epoch", "images_seen")}
            self._tracker.write(event, **progress, **{k: v for k, v in values.items() if k not in progress})

    def _say(self, line: str) -> None:
        if self._world.is_main:
            log.info(line)


@contextmanager
def _stop_on_signals(guard: Guard) -> Iterator[None]:
    """SIGTERM and SIGUSR1 (preemption) ask for a stop at the next step."""

    def ask(*_: object) -> None:
        guard.stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
