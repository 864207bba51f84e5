"""What a run will do: its flags, the shards and the checkpoint it goes on from, looked at once and checked.

Imports no torch: what the plan refuses is answered at once. Nothing after the plan asks the disk again.
"""

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from relic.codec.constants import EMBEDDED, MIN_CALIB_IMAGES, MIN_MS_SSIM_SIDE, STRIDE
from relic.errors import InputError
from relic.files import check_folder
from relic.shards.shard_set import ShardSet
from relic.storage.spec import resolve_shards
from train.config import TrainConfig

CHECKPOINTS = ("last.pt", "best_msssim.pt", "best_loss.pt")
LAUNCH = ".launch"
"""Names the torchrun launch that a run in save_dir belongs to."""
_NAMELESS = "none"
"""torchrun's name for a launch that was given none."""
_CALIB_IMAGES = 64
"""Crops for calibration where --calib_images is not given and the set holds as many."""
_FIXED_ON_RESUME = (
    "replace_parts",
    "train_scope",
    "epochs",
    "batch_size",
    "lr",
    "loss_type",
    "distortion",
    "alpha_l1",
    "lambda_bpp",
    "optimizer",
    "weight_decay",
    "precondition",
    "sched",
    "lr_warmup_steps",
    "onecycle_pct_start",
    "seed",
    "shuffle_window",
)
"""A resumed run keeps these, so that it equals the run that was not interrupted."""
_FREE_ON_RESUME = (
    "val_shards",
    "amp",
    "amp_dtype",
    "local_fp32",
    "local_fp32_custom",
    "max_grad_norm",
    "overflow_check",
    "overflow_tol",
    "compile",
    "deterministic",
)
"""A resumed run may change these, as a way out of trouble. It then computes something else; a line says so."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs to know before it begins. Every process of a run makes its own."""

    config: TrainConfig
    train_set: ShardSet
    val_set: ShardSet
    resume: Path | None
    """The checkpoint to go on from; None to begin anew."""
    continues: bool
    """Whether that checkpoint is save_dir's own. Then the records and best checkpoints beside it are the run's too."""
    calib_images: int
    """Train crops that calibration looks at."""
    launch: str
    """Name of the torchrun launch; empty without torchrun."""

    @property
    def steps_per_epoch(self) -> int:
        return self.train_set.num_samples // self.config.batch_size

    @property
    def values(self) -> dict[str, Any]:
        """The flags for records and checkpoints, with the real number of calibration crops where these are used."""
        values = self.config.plain_values()
        if self.config.initialisation == "calibrated" or self.config.precondition:
            values["calib_images"] = self.calib_images
        return values


def make_plan(config: TrainConfig) -> Plan:
    """Check the files, folders and shards that `config` names. Writes nothing but the shard cache.

    Raises InputError naming the flag, and DownloadError where shards could not be fetched.
    """
    _check_files(config)
    launch = launch_name()
    last = config.save_dir / "last.pt"
    restarted = is_restarted(config.save_dir, launch)
    if restarted or config.resume == "auto":
        resume = last if last.exists() else None
    else:
        resume = Path(config.resume) if config.resume else None
    continues = resume is not None and resume.parent.resolve() == config.save_dir.resolve()
    _check_save_dir(config, goes_on=(restarted or config.resume is not None) and (resume is None or continues))
    if resume is not None:
        _check_resumed_file(config, resume)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % world_size:
        raise InputError(f"--batch_size {config.batch_size}: not divisible by the {world_size} processes sharing it")
    train_set, val_set = _open_shards(config)
    return Plan(
        config=config,
        train_set=train_set,
        val_set=val_set,
        resume=resume,
        continues=continues,
        calib_images=_calib_images(config, train_set, begins=resume is None),
        launch=launch,
    )


def launch_name() -> str:
    """What all processes of one torchrun launch, and of its restarts, have in common; empty without torchrun."""
    names = [os.environ.get("TORCHELASTIC_RUN_ID", "")]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        names += [os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")]  # the same for all restarts
    return " ".join(names).strip()


def is_restarted(save_dir: Path, launch: str) -> bool:
    """Whether torchrun started this process again, and the run in save_dir is the one it had started before.

    A machine whose own processes did not fail counts no restart. There only the launch's name can tell.
    """
    file = save_dir / LAUNCH
    counted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    told = counted or os.environ.get("TORCHELASTIC_RUN_ID", _NAMELESS) != _NAMELESS
    return told and file.exists() and file.read_text() == launch


def check_resumed(config: TrainConfig, theirs: Mapping[str, object]) -> None:
    """Raise InputError unless the flags of the run to resume are ours, where these decide what it computes."""
    mine = config.plain_values()
    theirs = {"precondition": False, **theirs}  # which older runs do not know
    if theirs.get("distill"):
        raise InputError(
            f"--resume: the run to resume was trained with --distill {theirs['distill']}, which is gone; "
            "start a new run with --pretrained and another --save_dir"
        )
    for name in _FIXED_ON_RESUME:
        if theirs.get(name) != mine[name]:
            raise InputError(
                f"--{name} {mine[name]}: the run to resume has {theirs.get(name)}; "
                "keep it, or start a new run with --pretrained and another --save_dir"
            )


def changed_since(config: TrainConfig, theirs: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """(name, value there, value here) of what differs from the run to resume and may."""
    mine = config.plain_values()
    return [(name, theirs[name], mine[name]) for name in _FREE_ON_RESUME if theirs.get(name, mine[name]) != mine[name]]


def _check_files(config: TrainConfig) -> None:
    if config.pretrained not in ("zoo", EMBEDDED, "none") and not Path(config.pretrained).is_file():
        raise InputError(f"--pretrained {config.pretrained}: no such file; or use zoo, embedded or none")
    if config.resume not in (None, "auto") and not Path(config.resume or "").is_file():
        raise InputError(f"--resume {config.resume}: no such file; --resume auto takes the newest of --save_dir")
    check_folder("--save_dir", config.save_dir)
    if config.recon_every:
        check_folder("--recon_dir", config.recon_dir)


def _check_save_dir(config: TrainConfig, *, goes_on: bool) -> None:
    """Refuse a folder that holds another run. Rank 0 alone asks: the others may come when it has begun to write."""
    if goes_on or config.overwrite or int(os.environ.get("RANK", "0")) != 0:
        return
    if any((config.save_dir / name).exists() for name in CHECKPOINTS):
        raise InputError(
            f"--save_dir {config.save_dir}: holds a run; --resume auto goes on with it, --overwrite begins anew"
        )


def _check_resumed_file(config: TrainConfig, path: Path) -> None:
    """Answer before torch is loaded what can be: whether it is a checkpoint at all, and the flags beside it."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"--resume {path}: not a checkpoint, or a damaged one")
    beside = path.with_name("config.yaml")
    if beside.exists() and path.name == "last.pt":
        # A damaged one is no loss: the checkpoint holds the flags too.
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            found = yaml.safe_load(beside.read_text())
            if isinstance(found, dict):
                check_resumed(config, found)


def _open_shards(config: TrainConfig) -> tuple[ShardSet, ShardSet]:
    """The train split of --shards and the val split of --val_shards, or of --shards."""
    train_set = resolve_shards(config.shards, "train")
    if config.val_shards is None:
        val_set = resolve_shards(config.shards, "val")
    else:
        val_set = resolve_shards(config.val_shards, "val", flag="--val_shards")
    _check_crops(train_set, "--shards", needs_ms_ssim=config.needs_ms_ssim)
    _check_crops(val_set, "--val_shards", needs_ms_ssim=True)
    if train_set.num_samples < config.batch_size:
        raise InputError(
            f"--batch_size {config.batch_size}: {train_set.folder} holds only {train_set.num_samples} train samples"
        )
    return train_set, val_set


def _check_crops(shards: ShardSet, flag: str, *, needs_ms_ssim: bool) -> None:
    size = f"{flag} {shards.folder}: its {shards.split} crops are {shards.width}x{shards.height}"
    if needs_ms_ssim and min(shards.width, shards.height) < MIN_MS_SSIM_SIDE:
        raise InputError(f"{size}; MS-SSIM needs sides over {MIN_MS_SSIM_SIDE - 1}, pack with --size 224")
    if shards.width % STRIDE or shards.height % STRIDE:
        raise InputError(f"{size}; the model needs multiples of {STRIDE}, pack with --size 224")


def _calib_images(config: TrainConfig, train_set: ShardSet, *, begins: bool) -> int:
    """--calib_images, or what there is up to 64. A run that begins calibrated has to have them."""
    there_are = f"{train_set.folder} holds only {train_set.num_samples} train samples"
    if begins and config.initialisation == "calibrated":
        if config.calib_images is not None and config.calib_images > train_set.num_samples:
            raise InputError(f"--calib_images {config.calib_images}: {there_are}; take fewer, or --swap_init naive")
        if train_set.num_samples < MIN_CALIB_IMAGES:
            raise InputError(
                f"--shards {config.shards}: {there_are}, calibration needs {MIN_CALIB_IMAGES} or more; "
                "pack more, or --swap_init naive"
            )
    return min(config.calib_images or _CALIB_IMAGES, train_set.num_samples)
