"""The flags of `train/main.py` and the checks that need only the flags. Opens no file and does not import torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from relic.codec.constants import MIN_CALIB_IMAGES
from relic.errors import InputError
from relic.options import (
    MOST_CACHE_GB,
    AmpDtype,
    Device,
    Direct,
    Distortion,
    LossType,
    OptimizerName,
    Parts,
    Policy,
    QatRanges,
    Sched,
    Scope,
    SwapInit,
    Switch,
    Upsample,
    Verify,
)
from relic.storage.run_copy import check_store
from relic.storage.urls import without_secrets

_WARMUP_STEPS = 50
"""With a calibrated start and 3 steps of warm-up, 6 steps raised the loss on held-out photographs by 8 %; with 50 steps
none of 6, 30, 100 and 400 steps did."""

GONE = {
    "coco_dir": "pack the images once with `python prep/make_shards.py --coco_dir D` and pass its folder as --shards",
    "use_prepared": "training always reads packed shards; pass their folder as --shards",
    "num_workers": "shards are read by threads, not worker processes; see --decode_threads",
    "distill": "it gained nothing over a calibrated start; use --precondition, which learns faster",
    "amp_warmup_steps": "use --lr_warmup_steps to warm up the learning rate, or --amp false",
}


@dataclass(frozen=True)
class TrainConfig:
    """Replace GDN by ReLU in a learned image codec and fine-tune it on packed crops.

    One process: `python train/main.py ...`; several: `torchrun --nproc_per_node 8 train/main.py ...`.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": (
            "shards", "val_shards", "cache_gb", "cache_dir", "decode_threads", "io_threads", "direct", "verify",
            "shuffle_window",
        ),
        "model": (
            "quality", "pretrained", "channels", "replace_parts", "train_scope", "swap_init", "calib_images",
        ),
        "loss": ("loss_type", "distortion", "alpha_l1", "lambda_bpp"),
        "optimizer": (
            "epochs", "rounded_epochs", "batch_size", "lr", "optimizer", "weight_decay", "precondition", "sched",
            "lr_warmup_steps", "onecycle_pct_start", "max_grad_norm",
        ),
        "precision": (
            "amp", "amp_dtype", "local_fp32", "local_fp32_custom", "overflow_check", "overflow_tol", "deterministic",
            "qat", "qat_upsample", "qat_ranges",
        ),
        "output": (
            "save_dir", "save_url", "save_every_steps", "validate_every_steps", "resume", "overwrite", "contexts",
            "recon_every", "recon_count", "recon_dir", "log_every", "wandb",
        ),
        "machine": ("device", "compile", "seed"),
    }  # fmt: skip

    shards: str
    """Folder of shards (written by `prep/make_shards.py`, or any WebDataset of images) or its URL, or a pattern of tars
    or URLs such as `.../train-{000000..000117}.tar`."""
    cache_gb: float = 0.0
    """GB (1e9 bytes) of disk for shards at URLs. A part of the set that fits is fetched while the training goes on; the
    rest is read from the server, sample by sample. 0: all shards are fetched before the training."""
    cache_dir: Path | None = None
    """Folder of the cache of shards at URLs. Default: $XDG_CACHE_HOME/relic, or ~/.cache/relic."""
    val_shards: str | None = None
    """Shards whose `val` split is used for validation, in the same form as --shards. By default those of --shards."""
    quality: int = 8
    """Quality 1 to 8 of CompressAI's pretrained model. With --pretrained none it sets only the channels."""
    pretrained: str = "zoo"
    """`zoo` (CompressAI's weights, downloaded), `embedded` (the small codec in this repository), `none`, or a
    file or its URL."""
    channels: str | None = None
    """Channels N,M of a model made with --pretrained none, for example 32,48."""
    replace_parts: Parts = "encoder"
    """Transforms in which GDN is replaced by ReLU."""
    train_scope: Scope = "replaced+hyper"
    """What is trained. `replaced`: the transforms with ReLU; `replaced+hyper`: these and the entropy bottleneck; `all`:
    everything."""
    swap_init: SwapInit | None = None
    """Weights around a replaced layer at the start. `calibrated`: refitted to the GDN codec on train crops; `naive`:
    unchanged. Default: calibrated, but naive with --pretrained none."""
    calib_images: int | None = None
    """Number of train crops used for calibration, of as many images as are found at the beginning of the first epoch.
    Default: 64, or all if there are fewer."""
    epochs: int = 10
    """Passes over the train shards. 0: validate and save the swapped model without training."""
    rounded_epochs: int = 0
    """The last of --epochs, in which the encoder stays as it is, and the decoder and the entropy bottleneck are trained
    on rounded latents instead of noisy ones."""
    batch_size: int = 16
    """Images per step, over all processes."""
    lr: float | None = None
    """Peak learning rate. Default: 1e-3 with --precondition or --optimizer soap, otherwise 1e-4."""
    loss_type: LossType = "recon"
    """The loss. `recon`: distortion alone; `rd`: distortion + lambda_bpp x bpp."""
    distortion: Distortion = "l1_msssim"
    """The distortion. `l1_msssim`: alpha_l1 x L1 + (1 - alpha_l1)(1 - MS-SSIM); `mse`: mean squared error of pixels in
    [0, 1]."""
    alpha_l1: float = 0.4
    """Weight of L1 in l1_msssim, 0 to 1."""
    lambda_bpp: float = 0.01
    """Weight of the rate in the rd loss."""
    amp: Switch = "auto"
    """Mixed precision. auto: on for CUDA, off for a CPU."""
    amp_dtype: AmpDtype = "fp16"
    """Data type of mixed precision. fp16 rounds more finely; bf16 has the range of fp32."""
    local_fp32: Policy = "entropy"
    """Modules kept in fp32 under mixed precision. Entropy models always are."""
    local_fp32_custom: str = ""
    """Comma-separated parts of class names for --local_fp32 custom, for example GDN,Conv2d."""
    optimizer: OptimizerName = "adam"
    """Optimizer. soap: Adam in coordinates in which the gradients of a kernel are decorrelated. It needs the fewest
    steps."""
    weight_decay: float = 0.0
    """Weight decay."""
    precondition: Switch = "auto"
    """Update each kernel in coordinates in which its inputs, measured on the first crops, are centred and decorrelated.
    auto: for a calibrated start, without --weight_decay, with adam or adamw. Such a start then allows an --lr of 1e-3
    to 2e-3."""
    sched: Sched = "cosine"
    """Schedule of the learning rate. cosine: falls to lr / 100, step by step; plateau: is halved after 3 epochs
    without a better MS-SSIM."""
    lr_warmup_steps: int | None = None
    """Steps in which the learning rate rises linearly from lr / steps to lr. Default: 50; onecycle has
    its own."""
    onecycle_pct_start: float = 0.1
    """Share of the steps (0 to 1) in which the learning rate of onecycle rises."""
    max_grad_norm: float = 1.0
    """Larger gradients are scaled down to this norm; 0 or less: never."""
    overflow_check: bool = True
    """Stop at the first forward value that is not finite or is larger than --overflow_tol."""
    overflow_tol: float = 1e8
    """Largest absolute value that --overflow_check allows."""
    recon_every: int = 2
    """Epochs between reconstructions written as PNG; 0: never."""
    recon_count: int = 16
    """Number of validation images to reconstruct."""
    recon_dir: Path = Path("recon")
    """Folder of the reconstructions."""
    save_dir: Path = Path("checkpoints")
    """Folder of last.pt, best_msssim.pt, best_loss.pt, metrics.jsonl and config.yaml."""
    save_url: str | None = None
    """Folder of an object store, such as s3://bucket/run, that gets a copy of save_dir's files whenever a checkpoint is
    written. --resume auto continues from there on another machine."""
    save_every_steps: int = 0
    """Steps between checkpoints inside an epoch; 0: only at the end of each epoch."""
    validate_every_steps: int = 0
    """Steps between validations inside an epoch; 0: only at the end of each epoch."""
    resume: str | None = None
    """Checkpoint to continue from: a file or its URL, or `auto` for save_dir/last.pt if it exists."""
    overwrite: bool = False
    """Start a new run in a save_dir that holds another run, and delete that run's checkpoints."""
    contexts: bool = True
    """At the end, count context tables on the training crops for smaller streams, and add them to the checkpoints."""
    log_every: int = 10
    """Steps between status lines."""
    wandb: bool = False
    """Also log to Weights & Biases."""
    seed: int = 0
    """Seed of the order of the samples, the initialisation and the quantisation noise."""
    deterministic: bool = False
    """Use only algorithms whose results repeat bit for bit (on CUDA; on a CPU they always do)."""
    qat: bool = False
    """Quantization-aware training: train with the roundings of the INT8 files of export/onnx_parts.py. Parts with GDN
    stay in float."""
    qat_upsample: Upsample = "subpixel"
    """The --upsample of the export, for --qat: deconv5 and deconv6 have other steps for their weights."""
    qat_ranges: QatRanges = "learned"
    """Ranges of activations under --qat. learned: by the loss. moving_average: of the largest value of each batch.
    drpai: the same, with twice the step, as DRP-AI's quantizer has it: the largest value is at level 127 of 255."""
    compile: bool = False
    """Compile the model and the loss with torch.compile."""
    decode_threads: int = 0
    """Threads per process that decode, or copy raw crops, at a time; 0: the cores divided by the processes."""
    io_threads: int = 0
    """Reads of the storage in flight per process, at least --decode_threads; 0: 32 divided by the processes of this
    machine, at least 8."""
    direct: Direct = "auto"
    """Read shards past the page cache. auto: those that do not fit into the available memory; on: all; off: none."""
    verify: Verify = "first"
    """When the hash of a sample is checked. first: on its first read; always: on every read; off: never."""
    shuffle_window: int = 0
    """Number of shards that are shuffled together, and so open at the same time; 0: all."""
    device: Device = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        """Raise InputError naming the flag if flags are out of range or contradict each other.

        `train.plan` checks files and shards.
        """
        _within("quality", self.quality, 1, 8)
        if self.save_url is not None:
            check_store(self.save_url, "--save_url")
        for name in ("batch_size", "log_every"):
            _within(name, getattr(self, name), 1, None)
        for name in (
            "epochs",
            "rounded_epochs",
            "recon_every",
            "recon_count",
            "save_every_steps",
            "validate_every_steps",
            "decode_threads",
            "io_threads",
        ):
            _within(name, getattr(self, name), 0, None)
        for name in ("shuffle_window", "weight_decay", "lambda_bpp", "overflow_tol"):
            _within(name, getattr(self, name), 0, None)
        _within("cache_gb", self.cache_gb, 0, MOST_CACHE_GB)
        _within("seed", self.seed, 0, 2**62)
        _within("alpha_l1", self.alpha_l1, 0, 1)
        if self.lr_warmup_steps is not None:
            _within("lr_warmup_steps", self.lr_warmup_steps, 0, None)
        if self.calib_images is not None:
            _within("calib_images", self.calib_images, MIN_CALIB_IMAGES, None)
        if not 0 < self.onecycle_pct_start < 1:
            raise InputError(f"--onecycle_pct_start {self.onecycle_pct_start}: must be between 0 and 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: must be over 0")
        if self.sched == "onecycle" and self.lr_warmup_steps:
            raise InputError("--lr_warmup_steps: onecycle has its own warm-up; set --onecycle_pct_start instead")
        if self.replace_parts == "none" and self.train_scope != "all":
            raise InputError(f"--train_scope {self.train_scope}: --replace_parts none needs --train_scope all")
        if self.replace_parts == "none" and self.swap_init:
            raise InputError(f"--swap_init {self.swap_init}: --replace_parts none swaps nothing; leave it out")
        if self.precondition is True and self.weight_decay:
            raise InputError(
                f"--weight_decay {self.weight_decay}: has no meaning with --precondition; remove one of the two"
            )
        if self.optimizer == "soap" and self.weight_decay:
            raise InputError(f"--weight_decay {self.weight_decay}: goes with --optimizer adam or adamw")
        self._check_rounded()
        self._check_qat()
        if self.local_fp32 == "custom" and not self.local_fp32_custom:
            raise InputError("--local_fp32 custom: name classes with --local_fp32_custom, for example GDN,Conv2d")
        _ = self.channel_pair
        if self.channels and self.pretrained != "none":
            raise InputError("--channels: needs --pretrained none; pretrained weights have their own channels")
        if self.overwrite and self.resume == "auto":
            raise InputError("--overwrite: starts a new run, --resume auto continues one; give one of the two")

    def _check_rounded(self) -> None:
        if self.rounded_epochs > self.epochs:
            raise InputError(f"--rounded_epochs {self.rounded_epochs}: must be --epochs {self.epochs} at most")
        if self.rounded_epochs and self.replace_parts == "encoder" and self.train_scope != "all":
            raise InputError(
                "--rounded_epochs: trains the decoder; choose --train_scope all, or --replace_parts decoder or all"
            )
        if self.rounded_epochs and self.qat:
            raise InputError("--rounded_epochs: does not go with --qat; leave out one of the two")

    def _check_qat(self) -> None:
        if not self.qat:
            for name, default in (("qat_upsample", "subpixel"), ("qat_ranges", "learned")):
                if getattr(self, name) != default:
                    raise InputError(f"--{name}: goes with --qat")
            return
        if self.replace_parts == "none":
            raise InputError("--qat: GDN has no 8-bit form; choose --replace_parts encoder, decoder or all")
        if self.weight_decay:
            raise InputError("--weight_decay: would shrink the steps that --qat learns; leave out one of the two")
        if self.amp is True:
            raise InputError(
                "--qat: trains in fp32, since bf16 and fp16 have too few digits for its steps; --amp false"
            )
        if self.compile:
            raise InputError("--qat: works without torch.compile; leave out --compile")

    def plain_values(self) -> dict[str, Any]:
        """The flags as plain values that YAML and a checkpoint can hold, without the secrets of URLs.

        The defaults of the optimizer are resolved, because other flags decide them.
        """
        plain = (int, float, str, type(None))
        resolved = {"precondition": self.preconditioned, "lr": self.peak_lr, "lr_warmup_steps": self.warmup_steps}
        values = {
            name: value if isinstance(value, plain) else str(value)
            for name, value in {**dataclasses.asdict(self), **resolved}.items()
        }
        for name in ("shards", "val_shards", "pretrained", "resume", "save_url"):
            if (text := values[name]) is not None:
                values[name] = without_secrets(str(text))
        return values

    @property
    def needs_ms_ssim(self) -> bool:
        """Whether the loss contains MS-SSIM."""
        return self.distortion == "l1_msssim" and self.alpha_l1 < 1

    @property
    def initialisation(self) -> SwapInit | Literal["none"]:
        """The resolved --swap_init; `none` if nothing is replaced."""
        if self.replace_parts == "none":
            return "none"
        return self.swap_init or ("naive" if self.pretrained == "none" else "calibrated")

    @property
    def preconditioned(self) -> bool:
        """The resolved --precondition."""
        if self.precondition == "auto":
            return self.initialisation == "calibrated" and not self.weight_decay and self.optimizer != "soap"
        return self.precondition

    @property
    def peak_lr(self) -> float:
        """The resolved --lr."""
        return self.lr or (1e-3 if self.preconditioned or self.optimizer == "soap" else 1e-4)

    @property
    def warmup_steps(self) -> int:
        """The resolved --lr_warmup_steps."""
        if self.lr_warmup_steps is not None:
            return self.lr_warmup_steps
        return 0 if self.sched == "onecycle" else _WARMUP_STEPS

    @property
    def channel_pair(self) -> tuple[int, int] | None:
        """--channels as (N, M)."""
        if self.channels is None:
            return None
        numbers = self.channels.replace(" ", "").split(",")
        if len(numbers) != 2 or not all(number.isdecimal() and 1 <= int(number) <= 4096 for number in numbers):
            raise InputError(
                f"--channels {self.channels}: expected two whole numbers N,M from 1 to 4096, for example 32,48"
            )
        return int(numbers[0]), int(numbers[1])

    @property
    def fp32_class_names(self) -> list[str]:
        """--local_fp32_custom as a list."""
        return [name.strip() for name in self.local_fp32_custom.split(",") if name.strip()]


def _within(name: str, value: float, low: float, high: float | None) -> None:
    if not value >= low or (high is not None and value > high):
        limits = f"{low} to {high}" if high is not None else f"{low} or more"
        raise InputError(f"--{name} {value}: must be {limits}")
