"""Flags of `export/onnx_parts.py`. Imports no torch, so that a wrong command line is answered at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from export.devices.rules import TARGETS
from relic.codec.constants import STRIDE
from relic.errors import InputError
from relic.options import ExportPart, Int8Parts, Method, Parts, TargetName, Upsample

OLDEST_OPSET = 11
NEWEST_OPSET = 20
"""The newest one of torch's TorchScript exporter. Its other exporter may write another opset than asked for."""
OLDEST_INT8_OPSET = 13
_MAX_SIDE = 16384
_FEWEST_CALIB, _MOST_CALIB = 100, 500


@dataclass(frozen=True)
class ExportConfig:
    """Write a codec's parts as ONNX files, and check in onnxruntime that they compute what torch computes.

    encoder.onnx: x in [0, 1] -> y; decoder.onnx: y_hat -> x_hat in [0, 1]; full.onnx: x -> x_hat, for checking.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("ckpt", "replace_parts", "contexts"),
        "output": ("part", "out"),
        "input": ("input_size", "width", "height", "batch", "dynamic", "shards"),
        "operators": ("opset", "upsample", "target"),
        "INT8": (
            "int8",
            "int8_parts",
            "calib_shards",
            "calib_images",
            "calib_method",
            "calib_lambda",
            "int8_keep_last",
        ),
    }

    ckpt: str
    """A checkpoint of train/main.py or a state dict of CompressAI, as a path or a URL, or `embedded` (the codec in this
    repository)."""
    part: ExportPart
    """What to write. all: the three parts, tables.npz and export.json."""
    out: Path
    """The .onnx file for a single part, or the folder for --part all."""
    input_size: int = 224
    """Width and height of the image in pixels, a multiple of 16."""
    width: int | None = None
    """Width of an image that is not square. Needs --height."""
    height: int | None = None
    """Height of an image that is not square. Needs --width."""
    batch: int = 1
    """Images per batch. NPUs and export/codec.py need 1."""
    dynamic: bool = False
    """Leave batch, height and width open. NPU compilers need them fixed."""
    opset: int = 13
    """ONNX operator set of the files, 11 to 20. For DRP-AI use 13."""
    replace_parts: Parts | None = None
    """Where ReLU replaces GDN. Not needed: the checkpoint says it. If given, it must agree."""
    contexts: bool = True
    """With --part all: write the checkpoint's context tables, if it has some, into tables.npz. false: tables of version
    1, one row per channel. They do not change the parts."""
    shards: Path | None = None
    """Folder of shards whose `val` crops are the inputs of the check. By default these are seeded random images."""
    upsample: Upsample | None = None
    """Layers of the decoder's upsampling. All compute the same function. deconv5: 5x5 transposed convolution with
    output padding. deconv6: 6x6 without output padding. subpixel: 3x3 convolution to 4 phases, then DepthToSpace.
    subpixel-deconv2: the same convolution, then a 2x2 transposed convolution. Default: what is fastest on --target;
    without one, --qat_upsample of a checkpoint of --qat, or else subpixel."""
    target: TargetName = "generic"
    """Device: every node is checked against its compiler's rules. A part that its NPU cannot run is not written."""
    int8: bool = False
    """Quantize the parts (QDQ, static) with crops of --calib_shards, and measure what it costs."""
    int8_parts: Int8Parts = "all"
    """Parts that --int8 quantizes. The other one stays in float32, for example a decoder that runs on a server."""
    calib_shards: Path | None = None
    """Folder of shards for --int8. Its `train` crops calibrate. The cost is measured on the `val` crops of --shards, or
    else of this folder."""
    calib_images: int | None = None
    """Number of crops to calibrate on, 100 to 500. Default: 200, or all if there are fewer."""
    calib_method: Method | None = None
    """How --int8 chooses the ranges of activations. minmax: all values. percentile: all but 0.001 %. entropy: by
    relative entropy. learned: ranges, rounding of weights and biases by the rate-distortion loss, on at most 200 crops;
    a part with GDN has percentile instead. Default: the ranges trained by train/main.py --qat; percentile where the
    checkpoint has none."""
    calib_lambda: float | None = None
    """Weight of the rate for --calib_method learned. Default: --lambda_bpp of the checkpoint's training, if it was with
    --loss_type rd --distortion mse."""
    int8_keep_last: bool = False
    """Keep the encoder's last layer, and so the latents, in float32."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other, naming the flag. Reads no file: `export/plan.py` does."""
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
            raise InputError(f"--target {self.target}: its compiler needs fixed sizes; leave out --dynamic")
        if self.batch != 1:
            raise InputError(f"--target {self.target}: NPUs take one image at a time; leave out --batch")
        opsets = TARGETS[self.target].opsets
        if self.opset not in opsets:
            raise InputError(f"--target {self.target}: takes --opset {opsets.start} to {opsets.stop - 1}")

    def _check_int8(self) -> None:
        if not self.int8:
            for name in ("calib_shards", "calib_images", "calib_lambda", "int8_keep_last"):
                if getattr(self, name):
                    raise InputError(f"--{name}: goes with --int8")
            if self.int8_parts != "all":
                raise InputError("--int8_parts: goes with --int8")
            return
        if {self.part, self.int8_parts} == {"encoder", "decoder"}:
            raise InputError(f"--int8_parts {self.int8_parts}: --part {self.part} is the other one")
        if self.int8_keep_last and self.int8_parts == "decoder":
            raise InputError("--int8_keep_last: is about the encoder, and --int8_parts decoder leaves that in float32")
        if self.opset < OLDEST_INT8_OPSET:
            raise InputError(
                f"--int8: scales per channel need opset {OLDEST_INT8_OPSET}; --opset {self.opset} is older"
            )
        if self.batch != 1:
            raise InputError("--int8: calibrates one image at a time; leave out --batch")
        if self.calib_shards is None:
            raise InputError("--int8: needs --calib_shards, a folder of shards with `train` crops to calibrate on")
        if self.calib_images is not None and not _FEWEST_CALIB <= self.calib_images <= _MOST_CALIB:
            raise InputError(
                f"--calib_images {self.calib_images}: choose from {_FEWEST_CALIB} to {_MOST_CALIB}; "
                "or leave it out: that takes what there is, up to 200"
            )
        if self.calib_lambda is not None and not 0 <= self.calib_lambda < float("inf"):
            raise InputError(f"--calib_lambda {self.calib_lambda}: must be 0 or more")
        if self.calib_lambda is not None and self.calib_method != "learned":
            raise InputError("--calib_lambda: goes with --calib_method learned")
        if self.int8_keep_last and self.calib_method == "learned":
            raise InputError("--int8_keep_last: --calib_method learned quantizes all layers; leave out one of the two")

    def _check_out(self) -> None:
        if self.part == "all":
            if self.out.suffix == ".onnx":
                raise InputError(f"--out {self.out}: --part all writes a folder, not a file")
        elif self.out.suffix != ".onnx":
            raise InputError(f"--out {self.out}: --part {self.part} writes one file; name it *.onnx")

    @property
    def folder(self) -> Path:
        """The folder that the files are written to."""
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
