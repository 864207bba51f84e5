"""Flags of `evaluate/run.py`. Imports no torch, so that a wrong command line is answered at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from relic.bitstream.rdoq import RdoqSettings
from relic.errors import InputError
from relic.options import MOST_CACHE_GB, Device, Direct, Rdoq, Split, Switch

ORIGINALS = "origin"
"""Folder of the original images, beside one folder of reconstructions per codec."""

KODAK_IMAGES = 24

GONE = {
    "coco_dir": "pass a folder of images as --images, or packed shards as --shards",
    "use_prepared": "pass packed shards as --shards, or a folder of images as --images",
    "num_workers": "leave it out: shards are read by threads; see --io_threads",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate codecs on shards or on a folder of images: PSNR, MS-SSIM, estimated rate and real bitstreams.

    One process: `python evaluate/run.py ...`; several: `torchrun --nproc_per_node 8 evaluate/run.py ...`.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "codecs": ("checkpoint", "onnx", "curve"),
        "data": ("shards", "split", "cache_gb", "cache_dir", "images", "io_threads", "direct"),
        "measurement": ("bitstream", "contexts", "rdoq", "rdoq_lmbda", "strict", "references", "published"),
        "output": ("out", "recon_count", "report_images"),
        "machine": ("workers", "device"),
    }

    checkpoint: list[str] | None = None
    """Checkpoints of relic or state dict files of CompressAI, as paths or URLs, or `embedded` (the codec in this
    repository). At least one codec is needed, here or in --onnx."""
    onnx: list[Path] | None = None
    """Folders that `export/onnx_parts.py --part all` wrote, fp32 or INT8. They run in onnxruntime on the CPU."""
    shards: str | None = None
    """Folder of shards (from `prep/make_shards.py`, or any WebDataset of images) or its URL, or tars or URLs such as
    `.../val-{000000..000004}.tar`. Give this or --images."""
    cache_gb: float = 0.0
    """GB (1e9 bytes) of disk for --shards at URLs. What does not fit is read from the server, sample by sample. 0: all
    shards are fetched first."""
    cache_dir: Path | None = None
    """Folder of the cache of shards at URLs. Default: $XDG_CACHE_HOME/relic, or ~/.cache/relic."""
    split: Split = "val"
    """Split of --shards."""
    images: Path | None = None
    """Folder of images of any size, searched recursively. Give this or --shards."""
    io_threads: int = 0
    """Reads of --shards in flight per process, at least one per core; 0: 32 divided by the processes of this machine,
    at least 8."""
    direct: Direct = "auto"
    """Read --shards past the page cache. auto: those that do not fit into the available memory; on: all; off: none."""
    bitstream: bool = True
    """Encode and decode every image, and check the result. Without it the rate is only estimated."""
    contexts: bool = True
    """Code with the context tables of the codecs that have them. false: streams of version 1, one row per channel."""
    rdoq: Rdoq = "off"
    """Move symbols where the saved bits are worth the error: rate-distortion optimized quantization, in the encoder
    alone. `fast` runs the decoder twice per image, `full` up to 13 times."""
    rdoq_lmbda: float | None = None
    """What an error is worth to --rdoq: CompressAI's lambda, which is 1 / (255^2 x --lambda_bpp). More keeps more
    quality. By default it follows from the decoder."""
    strict: bool = False
    """Fail when real (without contexts) and estimated rate differ by more than 1 % + 8 bytes per image."""
    curve: list[str] | None = None
    """Names of RD curves: one per --checkpoint, then one per --onnx. Codecs with the same name form a curve. By default
    codecs with ReLU in the same places form one."""
    references: Switch = "auto"
    """Draw JPEG and WebP curves of the same images. auto: for up to 200 images."""
    published: bool = False
    """Add CompressAI's published curve of bmshj2018-factorized (mse). Only with Kodak's 24 images as --images."""
    out: Path = Path("recon/eval")
    """Folder of report.html, rd.png, summary.md, metrics.json, per_image.csv and the reconstructions."""
    recon_count: int = 16
    """Number of images, from the first on, whose reconstructions are written as PNG."""
    report_images: int = 3
    """Number of worst images, and of best images, that report.html shows."""
    workers: int = 0
    """Images evaluated at a time, with one core per image. 0: one per core of this process. The most is 4 per core. A
    GPU computes two of them at a time. With 1, encode_ms and decode_ms are the times of one image alone."""
    device: Device = "auto"
    """Where to compute. Export sets always run on the CPU."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other, naming the flag. Reads no file: `evaluate/plan.py` does."""
        for name in ("io_threads", "recon_count", "report_images", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be 0 or more")
        if not 0 <= self.cache_gb <= MOST_CACHE_GB:
            raise InputError(f"--cache_gb {self.cache_gb}: must be 0 to {MOST_CACHE_GB}")
        if self.strict and not self.bitstream:
            raise InputError("--strict: compares real with estimated rates; it needs --bitstream true")
        RdoqSettings(self.rdoq, self.rdoq_lmbda).check()
        if not self.codecs:
            raise InputError("missing --checkpoint or --onnx: nothing to evaluate (see --help)")
        if (self.shards is None) == (self.images is None):
            found = "neither is" if self.shards is None else "both are"
            raise InputError(f"--shards, --images: give one of the two, {found} given")
        for flag, is_given in (("--cache_gb", self.cache_gb), ("--cache_dir", self.cache_dir is not None)):
            if is_given and self.shards is None:
                raise InputError(f"{flag}: goes with --shards at URLs; --images are read where they are")
        if self.curve is not None and len(self.curve) != len(self.codecs):
            raise InputError(f"--curve: {len(self.curve)} names for {len(self.codecs)} codecs; give one per codec")
        if self.published and self.images is None:
            raise InputError(f"--published: needs Kodak's {KODAK_IMAGES} images; give these as --images")

    @property
    def codecs(self) -> list[str]:
        """All codecs as named on the command line: checkpoints, then export sets."""
        return [*(self.checkpoint or []), *map(str, self.onnx or [])]
