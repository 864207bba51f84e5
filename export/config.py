"""Flags of `export/onnx_parts.py`. Imports no torch: a wrong command line is answered at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from export.devices.rules import TARGETS
from relic.codec.constants import STRIDE
from relic.errors import InputError
from relic.options import ExportPart, Method, Parts, TargetName, Upsample

OLDEST_OPSET = 11
NEWEST_OPSET = 20
"""The newest that torch's TorchScript exporter writes; its other exporter may write another one than asked for."""
OLDEST_INT8_OPSET = 13
_MAX_SIDE = 16384
_FEWEST_CALIB, _MOST_CALIB = 100, 500


@dataclass(frozen=True)
class ExportConfig:
    """Write a codec's parts as ONNX files and prove in onnxruntime that they compute what torch computes.

    encoder.onnx: x in [0, 1] -> y; decoder.onnx: y_hat -> x_hat in [0, 1]; full.onnx: x -> x_hat, for checking.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("ckpt", "replace_parts"),
        "output": ("part", "out"),
        "input": ("input_size", "width", "height", "batch", "dynamic", "shards"),
        "operators": ("opset", "upsample", "target"),
        "INT8": ("int8", "calib_shards", "calib_images", "calib_method", "int8_keep_last"),
    }

    ckpt: str
    """A checkpoint of train/main.py, a state dict of CompressAI's, or `embedded` (the codec in this repository)."""
    part: ExportPart
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
    replace_parts: Parts | None = None
    """Where ReLU is in GDN's place. Never needed, the checkpoint tells; when given it must agree."""
    shards: Path | None = None
    """Folder of shards whose `val` crops are the inputs of the check; by default seeded pictures are."""
    upsample: Upsample = "deconv5"
    """The decoder's upsampling, exactly the same function each: transposed convolution 5x5 with output padding, or 6x6
    without; or a 3x3 convolution to 4 phases, interleaved by DepthToSpace or by a 2x2 transposed convolution."""
    target: TargetName = "generic"
    """Device whose published rules every node is held against; a part that would leave its NPU is not written."""
    int8: bool = False
    """Quantize the parts (QDQ, static) with crops of --calib_shards, and say what it costs."""
    calib_shards: Path | None = None
    """Folder of shards for --int8: `train` crops calibrate, `val` crops (those of --shards when given) judge."""
    calib_images: int = 200
    """Crops to calibrate on, 100 to 500."""
    calib_method: Method = "percentile"
    """How --int8 chooses ranges of activations: all values, all but 0.001 %, or by relative entropy."""
    int8_keep_last: bool = False
    """Leave the encoder's last layer, and so the latents, in float32."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag. Reads no file: `export/plan.py` does."""
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
        if self.target != "generic":
            self._check_target()
        self._check_int8()

    def _check_target(self) -> None:
        if self.dynamic:
            raise InputError(f"--target {self.target}: its compiler wants fixed sizes; leave out --dynamic")
        if self.batch != 1:
            raise InputError(f"--target {self.target}: NPUs take one image at a time; leave out --batch")
        opsets = TARGETS[self.target].opsets
        if self.opset not in opsets:
            raise InputError(f"--target {self.target}: takes --opset {opsets.start} to {opsets.stop - 1}")

    def _check_int8(self) -> None:
        if not self.int8:
            for name in ("calib_shards", "int8_keep_last"):
                if getattr(self, name):
                    raise InputError(f"--{name}: goes with --int8")
            return
        if self.opset < OLDEST_INT8_OPSET:
            raise InputError(
                f"--int8: scales per channel came with opset {OLDEST_INT8_OPSET}; --opset {self.opset} is older"
            )
        if self.batch != 1:
            raise InputError("--int8: calibrates one image at a time; leave out --batch")
        if self.calib_shards is None:
            raise InputError("--int8: needs --calib_shards, a folder of shards with `train` crops to calibrate on")
        if not _FEWEST_CALIB <= self.calib_images <= _MOST_CALIB:
            raise InputError(f"--calib_images {self.calib_images}: choose from {_FEWEST_CALIB} to {_MOST_CALIB}")

    def _check_out(self) -> None:
        if self.part == "all":
            if self.out.suffix == ".onnx":
                raise InputError(f"--out {self.out}: --part all writes a folder, not a file")
        elif self.out.suffix != ".onnx":
            raise InputError(f"--out {self.out}: --part {self.part} writes one file; name it *.onnx")

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
