"""What a run of `export/onnx_parts.py` reads, opened once, and where it writes. Imports no torch."""

from dataclasses import dataclass

from export.config import ExportConfig
from relic.codec.constants import EMBEDDED
from relic.errors import InputError
from relic.files import check_folder
from relic.shards.shard_set import ShardSet, open_shard_set
from relic.storage.remote_file import find_file

_CALIB_IMAGES = 200
"""Number of crops for calibration without --calib_images, if the set holds as many."""


@dataclass(frozen=True, kw_only=True)
class Int8Crops:
    """The crops of --int8."""

    train: ShardSet
    """Calibration."""
    calib_images: int
    """Number of train crops to calibrate on."""
    val: ShardSet
    """Measuring the cost."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """The flags, and the shards that they name."""

    config: ExportConfig
    shards: ShardSet | None
    """The `val` crops of --shards, for the check against torch."""
    int8: Int8Crops | None
    """None without --int8."""


def make_plan(config: ExportConfig) -> ExportPlan:
    """Check the paths and open the shards. Raises InputError, naming the flag, for paths that are missing or wrong."""
    check_checkpoint(config.ckpt)
    if config.part == "all" and config.out.is_file():
        raise InputError(f"--out {config.out}: --part all writes a folder, not a file")
    if config.part != "all" and config.out.is_dir():
        raise InputError(f"--out {config.out}: --part {config.part} writes one file; name it *.onnx")
    check_folder("--out", config.folder)
    shards = None if config.shards is None else open_shard_set(config.shards, "val")
    return ExportPlan(config=config, shards=shards, int8=_open_int8(config, shards))


def check_checkpoint(ckpt: str) -> None:
    """Raise InputError unless --ckpt names a file or the embedded codec."""
    if ckpt != EMBEDDED:
        find_file(ckpt, flag="--ckpt", otherwise=f"or use {EMBEDDED}")


def _open_int8(config: ExportConfig, shards: ShardSet | None) -> Int8Crops | None:
    if config.calib_shards is None:
        return None
    train = open_shard_set(config.calib_shards, "train", flag="--calib_shards")
    if config.calib_images is not None and config.calib_images > train.num_samples:
        raise InputError(
            f"--calib_images {config.calib_images}: {config.calib_shards} has {train.num_samples} train crops; "
            "leave it out"
        )
    return Int8Crops(
        train=train,
        calib_images=config.calib_images or min(_CALIB_IMAGES, train.num_samples),
        val=shards or open_shard_set(config.calib_shards, "val", flag="--calib_shards"),
    )
