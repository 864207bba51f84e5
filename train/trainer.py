"""The training loop: epochs of steps, and between them validation, reconstructions and checkpoints."""

import logging
import math
import signal
from dataclasses import dataclass, field
from typing import Any

from relic.codec.checkpoint import Checkpoint, random_state, restore_random_state, save_checkpoint
from relic.codec.pixels import to_float
from relic.distributed import World, gather_to_all, wait_for_all
from relic.loader.device_feed import feed_device
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.signals import handling
from relic.storage.run_copy import RunCopy
from train.guard import WAYS_OUT, DivergedError, StopRequested
from train.learner import Learner
from train.plan import RECORDS, TrainPlan
from train.records import Progress, StatusLine, Tracker
from train.start import Start
from train.validation import Validation, validate, write_reconstructions

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer:
    """Runs the plan's epochs, from the start or from the state that `load_state_dict` set."""

    plan: TrainPlan
    world: World
    start: Start
    """The architecture, and how the swapped layers were initialised."""
    learner: Learner
    train_loader: ShardLoader
    val_loader: ShardLoader
    tracker: Tracker | None = None
    """None on all ranks but 0."""
    copy: RunCopy | None = None
    """Of --save_url, on rank 0."""
    progress: Progress = field(default_factory=Progress)
    best_ms_ssim: float = float("-inf")
    best_loss: float = float("inf")

    def run(self) -> Validation | None:
        """Train to the last epoch and return its validation; None when a signal ended the run (after saving)."""
        self._track("start", **{**self.plan.flags, "calib_images": self.plan.calib_images})
        with handling((signal.SIGTERM, signal.SIGUSR1), self.learner.guard.request_stop):  # preemption
            try:
                result = self._first_look() if self.progress.step == 0 else None
                while self.progress.epoch < self.plan.config.epochs:
                    self._train_epoch()
                    result = self._finish_epoch()
                return result or self._validate()
            except StopRequested:
                self.save_last()
                self._say(f"stopped at step {self.progress.step}; --resume auto goes on from there")
                return None

    def _first_look(self) -> Validation:
        """Validate the model before its first step, and write reconstructions. With --epochs 0 the run ends here."""
        result = self._validate()
        if self.plan.config.recon_every:
            self._reconstruct(f"pre_e{self.progress.epoch:03d}")
        # A calibrated start is good. Training replaces it only by something better.
        self._keep_best(result)
        if not self.plan.config.epochs:
            self.save_last()
        return result

    def _train_epoch(self) -> None:
        config, progress = self.plan.config, self.progress
        order = epoch_order(self.plan.train_set.samples, config.seed, progress.epoch, config.shuffle_window)
        batches = train_batches(order, config.batch_size, self.world.rank, self.world.size, progress.images)
        epoch_images = len(order) // config.batch_size * config.batch_size
        status = StatusLine(progress, epoch_images, self.train_loader.times, self.world)
        self.learner.model.train()
        try:
            for batch in feed_device(self.train_loader.batches(batches), self.world.device, to_float):
                try:
                    values = self.learner.step(batch, progress.step)
                finally:
                    # StopRequested is raised after the optimizer's step, so the step is complete and counts.
                    progress.step += 1
                    progress.images += config.batch_size
                    progress.images_seen += config.batch_size
                status.add(values, config.batch_size)
                self._between_steps(status, epoch_images)
            self._track("train", **status.read())
        finally:
            status.close()

    def _between_steps(self, status: StatusLine, epoch_images: int) -> None:
        """Log, validate and save where it is due."""
        config, progress = self.plan.config, self.progress
        if progress.step % config.log_every == 0:
            self._track("train", **status.read())
        every = config.validate_every_steps
        if every and progress.step % every == 0 and progress.images < epoch_images:
            self.learner.guard.settle()
            self._validate()
        # Last, so that the records of a run that resumes from here hold everything before it.
        if config.save_every_steps and progress.step % config.save_every_steps == 0:
            self.save_last()

    def _finish_epoch(self) -> Validation:
        config, progress = self.plan.config, self.progress
        # Before the validation: a run that is stopped during it resumes without repeating the epoch.
        self.save_last()
        progress.epoch += 1
        progress.images = 0
        result = self._validate()
        self.learner.schedule.epoch_done(result.ms_ssim)
        self._keep_best(result)
        if config.recon_every and (progress.epoch % config.recon_every == 0 or progress.epoch == config.epochs):
            self._reconstruct(f"e{progress.epoch:03d}")
        self.save_last()
        return result

    def _validate(self) -> Validation:
        learner = self.learner
        learner.refresh_tables(self.progress.step)
        batch_size = self.plan.config.batch_size // self.world.size
        result = validate(learner.model, self.val_loader, batch_size, learner.loss_config, self.world)
        if not math.isfinite(result.loss):
            raise DivergedError(f"validation after step {self.progress.step}: the loss is not finite; {WAYS_OUT}")
        self._track("validate", **result._asdict())
        self._say(
            f"epoch {self.progress.epoch}: validation PSNR {result.psnr_db:.2f} dB, MS-SSIM {result.ms_ssim:.4f}, "
            f"estimated {result.bpp:.3f} bpp, loss {result.loss:.4f} ({result.num_images} images)"
        )
        return result

    def _keep_best(self, result: Validation) -> None:
        if result.ms_ssim > self.best_ms_ssim:
            self.best_ms_ssim = result.ms_ssim
            self.save_best("best_msssim.pt", result)
        if result.loss < self.best_loss:
            self.best_loss = result.loss
            self.save_best("best_loss.pt", result)

    def _reconstruct(self, name: str) -> None:
        config = self.plan.config
        if self.world.is_main and config.recon_count:
            paths = write_reconstructions(
                self.learner.model, self.val_loader, config.recon_dir, name, config.recon_count, self.world.device
            )
            if self.tracker:
                self.tracker.write_images("recon", paths, self.progress.step)
        wait_for_all(self.world)

    def save_last(self) -> None:
        """Write last.pt, from which a run can resume. Never after a step that diverged."""
        self._prepare_to_save()
        random_states = gather_to_all(random_state(self.world.device), self.world)
        self._write("last.pt", training={**self.state_dict(), "random": random_states})

    def save_best(self, name: str, result: Validation) -> None:
        """Write the model and its scores, without the training state. Never after a step that diverged."""
        self._prepare_to_save()
        self._write(name, metrics=result._asdict())

    def _prepare_to_save(self) -> None:
        self.learner.check(self.progress.step)
        self.learner.refresh_tables(self.progress.step)

    def _write(self, name: str, **content: Any) -> None:
        config = self.plan.config
        if self.world.is_main:
            checkpoint = Checkpoint(
                architecture=self.start.architecture,
                model=self.learner.model.state_dict(),
                swap_init=self.start.swap_init,
                train_scope=config.train_scope,
                loss_type=config.loss_type,
                config=self.plan.flags,
                fingerprint=self.plan.train_set.fingerprint,
                quantization=self.learner.quantizing.record() if self.learner.quantizing else None,
                **content,
            )
            save_checkpoint(config.save_dir / name, checkpoint)
            if self.copy is not None:
                self.copy.put(*RECORDS, name)
        wait_for_all(self.world)

    def state_dict(self) -> dict[str, Any]:
        """The training state, without the weights and the random states of the ranks."""
        return {
            **self.learner.state_dict(),
            "progress": vars(self.progress).copy(),
            "best_ms_ssim": self.best_ms_ssim,
            "best_loss": self.best_loss,
            "wandb_id": self.tracker.wandb_id if self.tracker else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's training state. Its best scores count if the files are in this run's folder."""
        self.learner.load_state_dict(state)
        self.progress = Progress(**state["progress"])
        if self.plan.continues:
            self.best_ms_ssim = state["best_ms_ssim"]
            self.best_loss = state["best_loss"]
        if self.world.rank < len(state["random"]):
            restore_random_state(state["random"][self.world.rank], self.world.device)

    def _track(self, event: str, **values: Any) -> None:
        if self.tracker and values:
            progress = {name: getattr(self.progress, name) for name in ("step", "epoch", "images_seen")}
            self.tracker.write(event, **progress, **{k: v for k, v in values.items() if k not in progress})

    def _say(self, line: str) -> None:
        if self.world.is_main:
            log.info(line)
