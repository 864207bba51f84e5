"""Flags of `train/main.py`. Imports no torch: a wrong command line is answered at once."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from relic.codec.constants import EMBEDDED, MIN_CALIB_IMAGES, MIN_MS_SSIM_SIDE, STRIDE
from relic.errors import InputError
from relic.files import check_folder
from relic.loader.remote import resolve_shards
from relic.options import (
    AmpDtype,
    Device,
    Distortion,
    LossType,
    OptimizerName,
    Parts,
    Policy,
    Sched,
    Scope,
    SwapInit,
    Switch,
    Verify,
)
from relic.shards.shard_set import ShardSet

CHECKPOINTS = ("last.pt", "best_msssim.pt", "best_loss.pt")
LAUNCH = ".launch"
"""Names the torchrun launch that a run in save_dir belongs to."""
_NAMELESS = "none"
"""torchrun's name for a launch that was given none."""
_FIXED_ON_RESUME = (
    "replace_parts", "train_scope", "epochs", "batch_size", "lr", "loss_type", "distortion", "alpha_l1", "lambda_bpp",
    "optimizer", "weight_decay", "precondition", "sched", "lr_warmup_steps",
    "onecycle_pct_start", "seed", "shuffle_window",
)  # fmt: skip
"""A resumed run keeps these, so that it equals the run that was not interrupted."""
_FREE_ON_RESUME = (
    "val_shards", "amp", "amp_dtype", "local_fp32", "local_fp32_custom", "max_grad_norm", "overflow_check",
    "overflow_tol", "compile", "deterministic",
)  # fmt: skip
"""What it may change, as a way out of trouble, though it then computes something else; a line says so."""
GONE = {
    "coco_dir": "pack the images once with `python prep/make_shards.py --coco_dir D` and pass its folder as --shards",
    "use_prepared": "training always reads packed shards; pass their folder as --shards",
    "num_workers": "shards are read by threads, not worker processes; see --decode_threads",
    "distill": "it gained nothing over a calibrated start; --precondition learns faster",
    "amp_warmup_steps": "use --lr_warmup_steps for the rate's warm-up, or --amp false",
}


@dataclass(frozen=True)
class TrainConfig:
    """Swap GDN for ReLU in a learned image codec and fine-tune it on packed crops.

    One process: `python train/main.py ...`; several: `torchrun --nproc_per_node 8 train/main.py ...`.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("shards", "val_shards", "decode_threads", "verify", "shuffle_window"),
        "model": (
            "quality", "pretrained", "channels", "replace_parts", "train_scope", "swap_init", "calib_images",
        ),
        "loss": ("loss_type", "distortion", "alpha_l1", "lambda_bpp"),
        "optimizer": (
            "epochs", "batch_size", "lr", "optimizer", "weight_decay", "precondition", "sched", "lr_warmup_steps",
            "onecycle_pct_start", "max_grad_norm",
        ),
        "precision": (
            "amp", "amp_dtype", "local_fp32", "local_fp32_custom", "overflow_check", "overflow_tol", "deterministic",
        ),
        "output": (
            "save_dir", "save_every_steps", "validate_every_steps", "resume", "overwrite", "recon_every", "recon_count",
            "recon_dir", "log_every", "wandb",
        ),
        "machine": ("device", "compile", "seed"),
    }  # fmt: skip

    shards: str
    """Folder of shards (of `prep/make_shards.py`, or any WebDataset of images), or tars or URLs as
    `.../train-{000000..000117}.tar`."""
    val_shards: str | None = None
    """Where the `val` split is that is validated on, given as --shards is; by default there."""
    quality: int = 8
    """Quality 1 to 8 of CompressAI's pretrained model; with --pretrained none, its channels."""
    pretrained: str = "zoo"
    """`zoo` (CompressAI's weights, downloaded), `embedded` (the small codec in this repository), `none`, or a file."""
    channels: str | None = None
    """Channels N,M of a model made with --pretrained none, as 32,48."""
    replace_parts: Parts = "encoder"
    """Where ReLU takes GDN's place."""
    train_scope: Scope = "replaced+hyper"
    """What is trained: the replaced transforms, these and the entropy bottleneck, or everything."""
    swap_init: SwapInit | None = None
    """How weights around a replaced layer start: `calibrated` refits them to the GDN codec on train crops, `naive`
    keeps them as they are. By default calibrated, but naive with --pretrained none."""
    calib_images: int = 64
    """Train crops that calibration looks at, the first of the first epoch's order."""
    epochs: int = 10
    """Passes over the train shards; 0 saves the swapped, untrained model and validates it."""
    batch_size: int = 16
    """Images a step, over all processes."""
    lr: float = 1e-4
    """Peak learning rate."""
    loss_type: LossType = "recon"
    """`recon`: distortion alone; `rd`: distortion + lambda_bpp x bpp."""
    distortion: Distortion = "l1_msssim"
    """`l1_msssim`: alpha_l1 x L1 + (1 - alpha_l1)(1 - MS-SSIM); `mse`: mean squared error of pixels in [0, 1]."""
    alpha_l1: float = 0.4
    """Weight of L1 against 1 - MS-SSIM, 0 to 1."""
    lambda_bpp: float = 0.01
    """Weight of the rate in an rd loss."""
    amp: Switch = "auto"
    """Mixed precision: auto means on for CUDA, off for a CPU."""
    amp_dtype: AmpDtype = "bf16"
    """Type of mixed precision; fp16 comes with a gradient scaler."""
    local_fp32: Policy = "entropy"
    """Modules kept in fp32 under mixed precision; entropy models always are."""
    local_fp32_custom: str = ""
    """Comma-separated parts of class names for --local_fp32 custom, as GDN,Conv2d."""
    optimizer: OptimizerName = "adam"
    """Optimizer."""
    weight_decay: float = 0.0
    """Weight decay."""
    precondition: bool = False
    """Move kernels in coordinates where their inputs, as the first crops show them, are centred and decorrelated: a
    calibrated start then learns several times faster, at an --lr of 1e-3 to 2e-3."""
    sched: Sched = "cosine"
    """Schedule of the rate; cosine falls to lr / 100, plateau halves it after 3 epochs without a better MS-SSIM."""
    lr_warmup_steps: int = 0
    """Steps over which the rate rises linearly from lr / steps."""
    onecycle_pct_start: float = 0.1
    """Share of the steps in which onecycle rises."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 or less: never."""
    overflow_check: bool = True
    """Stop at the first non-finite or over-limit forward value."""
    overflow_tol: float = 1e8
    """The limit of --overflow_check."""
    recon_every: int = 2
    """Epochs between reconstructions written as PNG; 0: never."""
    recon_count: int = 16
    """Validation images reconstructed."""
    recon_dir: Path = Path("recon")
    """Folder of the reconstructions."""
    save_dir: Path = Path("checkpoints")
    """Folder of last.pt, best_msssim.pt, best_loss.pt, metrics.jsonl and config.yaml."""
    save_every_steps: int = 0
    """Steps between checkpoints inside an epoch; 0: only at each epoch's end."""
    validate_every_steps: int = 0
    """Steps between validations inside an epoch; 0: only at each epoch's end."""
    resume: str | None = None
    """`auto` goes on from save_dir/last.pt where there is one; or a file."""
    overwrite: bool = False
    """Begin anew in a save_dir that holds a run."""
    log_every: int = 10
    """Steps between status lines."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    seed: int = 0
    """Seed of the order, the initialisation and the quantisation noise."""
    deterministic: bool = False
    """Only algorithms that repeat bit for bit (CUDA; a CPU's always do)."""
    compile: bool = False
    """Compile the model with torch.compile."""
    decode_threads: int = 0
    """Threads that read and decode, a process; 0: the cores shared out."""
    verify: Verify = "first"
    """When a sample's hash is checked: on its first read, always, or never."""
    shuffle_window: int = 0
    """Shards mixed, and so open, at once; 0: all."""
    device: Device = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag, before any data is touched."""
        _within("quality", self.quality, 1, 8)
        for name in ("batch_size", "log_every"):
            _within(name, getattr(self, name), 1, None)
        for name in (
            "epochs",
            "lr_warmup_steps",
            "recon_every",
            "recon_count",
            "save_every_steps",
            "validate_every_steps",
            "decode_threads",
        ):
            _within(name, getattr(self, name), 0, None)
        for name in ("shuffle_window", "weight_decay", "lambda_bpp", "overflow_tol"):
            _within(name, getattr(self, name), 0, None)
        _within("seed", self.seed, 0, 2**62)
        _within("alpha_l1", self.alpha_l1, 0, 1)
        _within("calib_images", self.calib_images, MIN_CALIB_IMAGES, None)
        if not 0 < self.onecycle_pct_start < 1:
            raise InputError(f"--onecycle_pct_start {self.onecycle_pct_start}: must be between 0 and 1")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: must be over 0")
        if self.sched == "onecycle" and self.lr_warmup_steps:
            raise InputError("--lr_warmup_steps: onecycle has its own warm-up; set --onecycle_pct_start instead")
        if self.replace_parts == "none" and self.train_scope != "all":
            raise InputError(f"--train_scope {self.train_scope}: --replace_parts none goes with --train_scope all")
        if self.replace_parts == "none" and self.swap_init:
            raise InputError(f"--swap_init {self.swap_init}: --replace_parts none swaps nothing; leave it out")
        if self.precondition and self.weight_decay:
            raise InputError(f"--weight_decay {self.weight_decay}: has no meaning under --precondition; leave one out")
        if self.local_fp32 == "custom" and not self.local_fp32_custom:
            raise InputError("--local_fp32 custom: name classes with --local_fp32_custom, as GDN,Conv2d")
        self._check_files()
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.batch_size % world_size:
            raise InputError(f"--batch_size {self.batch_size}: not divisible by the {world_size} processes sharing it")
        self._check_crops()

    def _check_files(self) -> None:
        _ = self.channel_pair
        if self.channels and self.pretrained not in ("none",):
            raise InputError("--channels: goes with --pretrained none; pretrained weights have their own")
        if self.pretrained not in ("zoo", EMBEDDED, "none") and not Path(self.pretrained).is_file():
            raise InputError(f"--pretrained {self.pretrained}: no such file; or use zoo, embedded or none")
        if self.resume not in (None, "auto") and not Path(self.resume or "").is_file():
            raise InputError(f"--resume {self.resume}: no such file; --resume auto takes the newest of --save_dir")
        check_folder("--save_dir", self.save_dir)
        if self.recon_every:
            check_folder("--recon_dir", self.recon_dir)
        if self.overwrite and self.resume == "auto":
            raise InputError("--overwrite: begins anew, --resume auto goes on; give one of the two")
        resumed = self.checkpoint_to_resume
        stays = self.goes_on and (resumed is None or self.continues_save_dir)
        if not stays and not self.overwrite and int(os.environ.get("RANK", "0")) == 0:
            self._refuse_other_run()
        if resumed is not None:
            self._check_resumed_file(resumed)

    def _check_resumed_file(self, path: Path) -> None:
        """Answer before torch is loaded what can be: whether it is a checkpoint at all, and the flags beside it."""
        if not zipfile.is_zipfile(path):
            raise InputError(f"--resume {path}: not a checkpoint, or a damaged one")
        beside = path.with_name("config.yaml")
        if beside.exists() and path.name == "last.pt":
            # A damaged one is no loss: the checkpoint holds the flags too.
            with suppress(yaml.YAMLError, UnicodeDecodeError):
                found = yaml.safe_load(beside.read_text())
                if isinstance(found, dict):
                    self.check_resumed(found)

    def check_resumed(self, theirs: Mapping[str, object]) -> None:
        """Raise InputError unless the flags of the run to resume are ours, where these decide what it computes."""
        mine = self.plain_values()
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

    def changed_since(self, theirs: Mapping[str, object]) -> list[tuple[str, object, object]]:
        """(name, value there, value here) of what differs from the run to resume and may."""
        mine = self.plain_values()
        return [
            (name, theirs[name], mine[name]) for name in _FREE_ON_RESUME if theirs.get(name, mine[name]) != mine[name]
        ]

    def plain_values(self) -> dict[str, Any]:
        """The flags as YAML and a checkpoint can hold them."""
        return {name: value if isinstance(value, (int, float, str, type(None))) else str(value)
                for name, value in dataclasses.asdict(self).items()}  # fmt: skip

    def _refuse_other_run(self) -> None:
        if any((self.save_dir / name).exists() for name in CHECKPOINTS):
            raise InputError(
                f"--save_dir {self.save_dir}: holds a run; --resume auto goes on with it, --overwrite begins anew"
            )

    def _check_crops(self) -> None:
        train_set = self.train_set()
        for shards, flag, needs_ms_ssim in (
            (train_set, "--shards", self.needs_ms_ssim),
            (self.val_set(), "--val_shards", True),
        ):
            size = f"{flag} {shards.folder}: its {shards.split} crops are {shards.width}x{shards.height}"
            if needs_ms_ssim and min(shards.width, shards.height) < MIN_MS_SSIM_SIDE:
                raise InputError(f"{size}; MS-SSIM needs sides over {MIN_MS_SSIM_SIDE - 1}, pack with --size 224")
            if shards.width % STRIDE or shards.height % STRIDE:
                raise InputError(f"{size}; the model needs multiples of {STRIDE}, pack with --size 224")
        samples = train_set.num_samples
        if samples < self.batch_size:
            raise InputError(f"--batch_size {self.batch_size}: {train_set.folder} holds only {samples} train samples")
        if self.initialisation == "calibrated" and self.checkpoint_to_resume is None and samples < self.calib_images:
            raise InputError(
                f"--calib_images {self.calib_images}: {train_set.folder} holds only {samples} train samples; "
                "take fewer, or --swap_init naive"
            )

    def train_set(self) -> ShardSet:
        """The train split of --shards."""
        return resolve_shards(self.shards, "train")

    def val_set(self) -> ShardSet:
        """The val split of --val_shards, or of --shards."""
        if self.val_shards is not None:
            return resolve_shards(self.val_shards, "val", flag="--val_shards")
        return resolve_shards(self.shards, "val")

    @property
    def needs_ms_ssim(self) -> bool:
        """Whether the loss contains MS-SSIM."""
        return self.distortion == "l1_msssim" and self.alpha_l1 < 1

    @property
    def initialisation(self) -> SwapInit | Literal["none"]:
        """--swap_init, resolved; `none` where nothing is replaced."""
        if self.replace_parts == "none":
            return "none"
        return self.swap_init or ("naive" if self.pretrained == "none" else "calibrated")

    @property
    def channel_pair(self) -> tuple[int, int] | None:
        """--channels as (N, M)."""
        if self.channels is None:
            return None
        numbers = self.channels.replace(" ", "").split(",")
        if len(numbers) != 2 or not all(number.isdecimal() and 1 <= int(number) <= 4096 for number in numbers):
            raise InputError(f"--channels {self.channels}: expected two whole numbers N,M from 1 to 4096, as 32,48")
        return int(numbers[0]), int(numbers[1])

    @property
    def goes_on(self) -> bool:
        """Whether this run continues another: asked for, or restarted by torchrun after a failure."""
        return self.resume is not None or self.restarted

    @property
    def restarted(self) -> bool:
        """Whether torchrun started this process again, and the run in save_dir is the one it had started before.

        A machine whose own processes did not fail counts no restart: there the launch's name alone must tell.
        """
        launch = self.save_dir / LAUNCH
        counted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        told = counted or os.environ.get("TORCHELASTIC_RUN_ID", _NAMELESS) != _NAMELESS
        return told and launch.exists() and launch.read_text() == launch_name()

    @property
    def checkpoint_to_resume(self) -> Path | None:
        """The file to go on from; None to begin anew."""
        last = self.save_dir / "last.pt"
        if self.restarted or self.resume == "auto":
            return last if last.exists() else None
        return Path(self.resume) if self.resume else None

    @property
    def continues_save_dir(self) -> bool:
        """Whether the checkpoint to go on from is save_dir's own, and so are the records and bests beside it."""
        resumed = self.checkpoint_to_resume
        return resumed is not None and resumed.parent.resolve() == self.save_dir.resolve()

    @property
    def fp32_class_names(self) -> list[str]:
        """--local_fp32_custom as a list."""
        return [name.strip() for name in self.local_fp32_custom.split(",") if name.strip()]


def launch_name() -> str:
    """What all processes of one torchrun launch, and of its restarts, have in common; empty without torchrun."""
    names = [os.environ.get("TORCHELASTIC_RUN_ID", "")]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        names += [os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")]  # the same for all restarts
    return " ".join(names).strip()


def _within(name: str, value: float, low: float, high: float | None) -> None:
    if not value >= low or (high is not None and value > high):
        limits = f"{low} to {high}" if high is not None else f"{low} or more"
        raise InputError(f"--{name} {value}: must be {limits}")
