"""Flags of `export/onnx_parts.py`. Imports no torch: a wrong command line is answered at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relic.codec.constants import EMBEDDED, STRIDE
from relic.errors import InputError
from relic.files import check_folder
from relic.shards.shard_set import open_shard_set

OLDEST_OPSET = 11
NEWEST_OPSET = 20
"""The newest that torch's TorchScript exporter writes; its other exporter may write another one than asked for."""
_MAX_SIDE = 16384


@dataclass(frozen=True)
class ExportConfig:
    """Write a codec's parts as ONNX files and prove in onnxruntime that they compute what torch computes.

    encoder.onnx: x in [0, 1] -> y; decoder.onnx: y_hat -> x_hat in [0, 1]; full.onnx: x -> x_hat, for checking.
    """

    ckpt: str
    """A checkpoint of train/main.py, a state dict of CompressAI's, or `embedded` (the codec in this repository)."""
    part: Literal["full", "encoder", "decoder", "all"]
    """What to write; all: the three parts, tables.npz and export.json."""
    out: Path
    """The .onnx file of a single part; the folder of --part all."""
    input_size: int = 224
    """Width and height of the image in pixels, a multiple of 16."""
    width: int | None = None
    """Width of the image when it is not square; goes with --height."""
    height: int | None = None
    """Height of the image; goes with --width."""
    batch: int = 1
    """Images in a batch; NPUs and export/codec.py want 1."""
    dynamic: bool = False
    """Leave batch, height and width open (NPU compilers want them fixed)."""
    opset: int = 13
    """ONNX operator set of the files, 11 to 20; DRP-AI wants 13."""
    replace_parts: Literal["encoder", "decoder", "all", "none"] | None = None
    """Where ReLU is in GDN's place. Never needed, the checkpoint tells; when given it must agree."""
    shards: Path | None = None
    """Folder of shards whose `val` crops are the inputs of the check; by default seeded pictures are."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag, before the checkpoint is read."""
        if self.ckpt != EMBEDDED and not Path(self.ckpt).is_file():
            raise InputError(f"--ckpt {self.ckpt}: no such file; or use {EMBEDDED}")
        if (self.width is None) != (self.height is None):
            raise InputError("--width and --height go together; for a square use --input_size")
        if self.width is None or self.height is None:
            _check_side("input_size", self.input_size)
        else:
            _check_side("width", self.width)
            _check_side("height", self.height)
        if not 1 <= self.batch <= 256:
            raise InputError(f"--batch {self.batch}: must be 1 to 256")
        if not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise InputError(f"--opset {self.opset}: choose from {OLDEST_OPSET} to {NEWEST_OPSET}")
        self._check_out()
        if self.shards is not None:
            open_shard_set(self.shards, "val")

    def _check_out(self) -> None:
        if self.part == "all":
            if self.out.suffix == ".onnx" or self.out.is_file():
                raise InputError(f"--out {self.out}: --part all writes a folder, not a file")
        elif self.out.suffix != ".onnx" or self.out.is_dir():
            raise InputError(f"--out {self.out}: --part {self.part} writes one file; name it *.onnx")
        check_folder("--out", self.folder)

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.out if self.part == "all" else self.out.parent

    @property
    def image_width(self) -> int:
        """Width in pixels."""
        return self.input_size if self.width is None else self.width

    @property
    def image_height(self) -> int:
        """Height in pixels."""
        return self.input_size if self.height is None else self.height


def _check_side(flag: str, side: int) -> None:
    if side < STRIDE or side > _MAX_SIDE:
        raise InputError(f"--{flag} {side}: choose from {STRIDE} to {_MAX_SIDE}")
    if side % STRIDE:
        below = side // STRIDE * STRIDE
        raise InputError(f"--{flag} {side}: must be a multiple of {STRIDE}; nearest are {below} and {below + STRIDE}")
