"""What a run will do: its flags, its shards and the checkpoint it continues from, each read once and checked.

Does not import torch, so a wrong command line is refused quickly. Later code uses the plan and does not read the disk
again.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from relic.codec.constants import EMBEDDED, MIN_CALIB_IMAGES, MIN_MS_SSIM_SIDE, STRIDE
from relic.errors import InputError, RefusedError
from relic.files import check_folder
from relic.launch import launch_name, read_ranks
from relic.loader.order import ORDER_BYTES, check_divides
from relic.machine import available_memory
from relic.plain_yaml import read_values
from relic.shards.shard_set import ShardSet
from relic.storage.cache_flags import check_cache
from relic.storage.remote_file import find_file, local_name
from relic.storage.resident import CacheRoom
from relic.storage.run_copy import fetch_run, holds
from relic.storage.spec import resolve_shards
from relic.storage.urls import without_secrets
from train.config import TrainConfig
from train.resumed_flags import check_resumed

log = logging.getLogger(__name__)

CHECKPOINTS = ("last.pt", "best_msssim.pt", "best_loss.pt")
RECORDS = ("config.yaml", "metrics.jsonl")
_COPIED = (*RECORDS, *CHECKPOINTS[1:])
"""What belongs to last.pt in the folder of a run."""
LAUNCH = ".launch"
"""File in save_dir with the names of the torchrun launch that the run belongs to, one line per machine."""
_CALIB_IMAGES = 64
"""Number of crops for calibration without --calib_images, if the set holds as many."""


class FoundRun(NamedTuple):
    """What save_dir and --resume mean for a run. Another run may change it until the lock of save_dir is held."""

    resume: Path | None
    """The checkpoint to continue from; None for a new run."""
    continues: bool
    """Whether that checkpoint is in save_dir."""
    may_replace: bool
    """Whether the run may remove checkpoints that are in save_dir."""

    def check_may_begin(self, save_dir: Path) -> None:
        """Raise RefusedError if the folder holds the checkpoints of a run that this one may not replace."""
        if not self.may_replace and any((save_dir / name).exists() for name in CHECKPOINTS):
            raise RefusedError(
                f"--save_dir {save_dir}: holds a run; --resume auto continues it, --overwrite starts a new one"
            )


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything a run needs to know before it begins. Every process of a run makes its own plan."""

    config: TrainConfig
    train_set: ShardSet
    val_set: ShardSet
    found: FoundRun
    calib_images: int
    """Number of train crops used for calibration."""
    launch: str
    """Name of the torchrun launch on this machine; empty without torchrun."""
    began_with: Mapping[str, Any] = field(default_factory=dict)
    """Flags that a resumed run began with, and that have no effect now."""

    @property
    def resume(self) -> Path | None:
        """The checkpoint to continue from; None for a new run."""
        return self.found.resume

    @property
    def continues(self) -> bool:
        """Whether that checkpoint is in save_dir. Then the records and best checkpoints there belong to this run."""
        return self.found.continues

    @property
    def flags(self) -> dict[str, Any]:
        """The flags for records and checkpoints, as plain values."""
        return {**self.config.plain_values(), **self.began_with}

    @property
    def steps_per_epoch(self) -> int:
        return self.train_set.num_samples // self.config.batch_size


def make_plan(config: TrainConfig) -> TrainPlan:
    """Check the files, folders and shards that `config` names. Writes only to the shard cache.

    Raises InputError naming the flag, and NetworkError if shards could not be fetched.
    """
    _check_files(config)
    ranks, launch = read_ranks(), launch_name()
    if config.save_url is not None and config.resume == "auto":
        fetch_run(config.save_url, config.save_dir, "last.pt", _COPIED)
    found = find_run(config, restarted=is_restarted(config.save_dir, launch))
    if ranks.rank == 0 and not found.may_replace:
        _check_copy(config.save_url)
    if ranks.rank == 0 and ranks.machines == 1:
        # When another rank comes to this line, rank 0 may have begun to write. With several machines, another one may
        # know that the launch was restarted.
        found.check_may_begin(config.save_dir)
    check_divides(config.batch_size, ranks.size)
    if ranks.rank == 0 and ranks.machines > 1 and ranks.max_restarts:
        _say_who_can_go_on(config.batch_size, ranks.machines, ranks.local_size)
    train_set, val_set = _open_shards(config)
    _check_order_fits(config, train_set, ranks.local_size)
    return TrainPlan(
        config=config,
        train_set=train_set,
        val_set=val_set,
        found=found,
        calib_images=_calib_images(config, train_set, begins=found.resume is None),
        launch=launch,
    )


def _check_copy(save_url: str | None) -> None:
    """Raise InputError if the store holds a run that this one may not replace."""
    if save_url is not None and holds(save_url, CHECKPOINTS):
        raise InputError(
            f"--save_url {without_secrets(save_url)}: holds a run; --resume auto continues it, --overwrite starts anew"
        )


def _say_who_can_go_on(batch_size: int, machines: int, processes: int) -> None:
    """Say it if a loss of machines may leave a number of processes that cannot share a batch."""
    left = [count for count in range(1, machines) if batch_size % (count * processes) == 0]
    if len(left) < machines - 1:
        log.warning(
            "--batch_size %d: if machines are lost, the run goes on only with %s of the %d (%d processes each), since "
            "the processes share a batch evenly",
            batch_size,
            " or ".join(map(str, left)) or "all",
            machines,
            processes,
        )


def find_run(config: TrainConfig, *, restarted: bool) -> FoundRun:
    """Look for the checkpoint to continue from. Raises InputError if it cannot be continued with these flags.

    `restarted`: torchrun restarted a run that is in save_dir, so this one continues it.
    """
    last = config.save_dir / "last.pt"
    if restarted or config.resume == "auto":
        resume = last if last.exists() else None
    else:
        resume = Path(local_name(config.resume)) if config.resume else None
    continues = resume is not None and resume.parent.resolve() == config.save_dir.resolve()
    goes_on = (restarted or config.resume is not None) and (resume is None or continues)
    if resume is not None:
        _check_resumed_file(config, resume)
    return FoundRun(resume, continues, may_replace=goes_on or config.overwrite)


def is_restarted(save_dir: Path, launch: str) -> bool:
    """Whether the run in save_dir was begun by this machine's part of the launch: torchrun has restarted it.

    torchrun's restart count does not tell: it stays 0 on a machine whose own processes did not fail.
    """
    file = save_dir / LAUNCH
    return bool(launch) and file.is_file() and os.fsencode(launch) in file.read_bytes().split(b"\n")


def _check_files(config: TrainConfig) -> None:
    if config.pretrained not in ("zoo", EMBEDDED, "none"):
        find_file(config.pretrained, flag="--pretrained", otherwise="or use zoo, embedded or none")
    if config.resume is not None and config.resume != "auto":
        find_file(config.resume, flag="--resume", otherwise="--resume auto continues from last.pt in --save_dir")
    check_folder("--save_dir", config.save_dir)
    if config.recon_every:
        check_folder("--recon_dir", config.recon_dir)


def _check_resumed_file(config: TrainConfig, path: Path) -> None:
    """Check what needs no torch: the flags in config.yaml beside the checkpoint. The checkpoint is read later, once."""
    if not path.is_file():
        raise InputError(f"--resume {path}: not a file")
    beside = path.with_name("config.yaml")
    if beside.exists() and path.name == "last.pt":
        # A damaged config.yaml does not matter: the checkpoint holds the flags too.
        found: Mapping[str, object] = {}
        with suppress(InputError):
            found = read_values(beside)
        if found:
            check_resumed(config, found)


def _open_shards(config: TrainConfig) -> tuple[ShardSet, ShardSet]:
    """The train split of --shards and the val split of --val_shards, or of --shards."""
    check_cache(config.cache_gb, config.cache_dir, {"--shards": config.shards, "--val_shards": config.val_shards})
    room = CacheRoom(config.cache_gb, config.cache_dir) if config.cache_gb else None
    if room is not None:  # the val crops are read most often: they come first
        val_set = _open_val(config, room)
    train_set = resolve_shards(config.shards, "train", room=room, cache_dir=config.cache_dir)
    if room is None:
        val_set = _open_val(config, room)
    if train_set.fingerprint == val_set.fingerprint:
        log.warning("the train and val samples are the same: the validation tells nothing about other images")
    for flag, folder in (("--save_dir", config.save_dir), ("--recon_dir", config.recon_dir)):
        if folder.resolve() in (train_set.folder.resolve(), val_set.folder.resolve()):
            raise InputError(f"{flag} {folder}: holds the shards; choose another folder")
    _check_crops(train_set, "--shards", needs_ms_ssim=config.needs_ms_ssim)
    _check_crops(val_set, "--val_shards", needs_ms_ssim=True)
    if train_set.num_samples < config.batch_size:
        raise InputError(
            f"--batch_size {config.batch_size}: {train_set.folder} holds only {train_set.num_samples} train samples"
        )
    return train_set, val_set


def _open_val(config: TrainConfig, room: CacheRoom | None) -> ShardSet:
    flag, text = ("--shards", config.shards) if config.val_shards is None else ("--val_shards", config.val_shards)
    return resolve_shards(text, "val", flag=flag, room=room, cache_dir=config.cache_dir)


def _check_order_fits(config: TrainConfig, train_set: ShardSet, processes: int) -> None:
    order_bytes = ORDER_BYTES * train_set.num_samples
    if not config.shuffle_window and order_bytes * processes > available_memory():
        raise InputError(
            f"--shuffle_window 0: to shuffle {train_set.num_samples:,} samples takes {order_bytes / 1e9:.1f} GB of "
            f"memory in each of the {processes} processes here, more than is free; give --shuffle_window 64"
        )


def _check_crops(shards: ShardSet, flag: str, *, needs_ms_ssim: bool) -> None:
    size = f"{flag} {shards.folder}: its {shards.split} crops are {shards.width}x{shards.height}"
    if needs_ms_ssim and min(shards.width, shards.height) < MIN_MS_SSIM_SIDE:
        raise InputError(f"{size}; MS-SSIM needs sides over {MIN_MS_SSIM_SIDE - 1}, pack with --size 224")
    if shards.width % STRIDE or shards.height % STRIDE:
        raise InputError(f"{size}; the model needs multiples of {STRIDE}, pack with --size 224")


def _calib_images(config: TrainConfig, train_set: ShardSet, *, begins: bool) -> int:
    """--calib_images; by default 64, or all crops if there are fewer. Raises InputError if calibration needs more."""
    there_are = f"{train_set.folder} holds only {train_set.num_samples} train samples"
    if begins and config.initialisation == "calibrated":
        if config.calib_images is not None and config.calib_images > train_set.num_samples:
            raise InputError(f"--calib_images {config.calib_images}: {there_are}; use fewer, or --swap_init naive")
        if train_set.num_samples < MIN_CALIB_IMAGES:
            raise InputError(
                f"--shards {train_set.folder}: {there_are}, calibration needs {MIN_CALIB_IMAGES} or more; "
                "pack more, or use --swap_init naive"
            )
    return min(config.calib_images or _CALIB_IMAGES, train_set.num_samples)
