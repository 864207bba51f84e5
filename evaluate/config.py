"""Flags of `evaluate/run.py`. Imports no torch: a wrong command line is answered at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from relic.errors import InputError
from relic.machine import share_of_cores
from relic.options import Device, Split, Switch

ORIGINALS = "origin"
"""Folder of the original pictures, beside one of reconstructions for each checkpoint."""

KODAK_IMAGES = 24

GONE = {
    "coco_dir": "pass a folder of images as --images, or packed shards as --shards",
    "use_prepared": "pass packed shards as --shards, or a folder of images as --images",
    "num_workers": "leave it out: shards are read by threads, as many as there are cores",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge codecs on shards or on a folder of images: PSNR, MS-SSIM, estimated rate and real bitstreams.

    One process: `python evaluate/run.py ...`; several: `torchrun --nproc_per_node 8 evaluate/run.py ...`.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "codecs": ("checkpoint", "onnx", "curve"),
        "data": ("shards", "split", "images"),
        "measurement": ("bitstream", "strict", "references", "published"),
        "output": ("out", "recon_count", "report_images"),
        "machine": ("workers", "device"),
    }

    checkpoint: list[str] | None = None
    """Checkpoints of ours or CompressAI's state dict files; `embedded` is the small codec we ship. One or more, these
    and --onnx together."""
    onnx: list[Path] | None = None
    """Folders that `export/onnx_parts.py --part all` wrote, fp32 or INT8: judged by onnxruntime and their tables."""
    shards: str | None = None
    """Folder of shards (of `prep/make_shards.py`, or any WebDataset of images), or tars or URLs as
    `.../val-{000000..000004}.tar`; this or --images."""
    split: Split = "val"
    """Split of --shards."""
    images: Path | None = None
    """Folder of images of any sizes, searched recursively; this or --shards."""
    bitstream: bool = True
    """Encode and decode every image for real, and check the result; without, the rate is only estimated."""
    strict: bool = False
    """Fail when real and estimated rate differ by more than 1 % + 8 bytes an image."""
    curve: list[str] | None = None
    """The RD curve each codec belongs to, a name for each --checkpoint and then each --onnx; without it those with
    ReLU in the same places form one."""
    references: Switch = "auto"
    """JPEG and WebP curves of the same images; auto: with up to 200 images."""
    published: bool = False
    """Add CompressAI's published points of bmshj2018-factorized (mse): they are Kodak's, so only for its 24 images."""
    out: Path = Path("recon/eval")
    """Folder of report.html, rd.png, summary.md, metrics.json, per_image.csv and the reconstructions."""
    recon_count: int = 16
    """Images whose reconstructions are written as PNG: the first so many."""
    report_images: int = 3
    """Images shown in report.html: so many of the worst and of the best."""
    workers: int = 0
    """Images judged at a time, a core each; 0: one for each core (of this process's share), on CUDA at most 2. With 1,
    a run's times are those of one image alone."""
    device: Device = "auto"
    """Where to compute; export sets always run on the CPU."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, naming the flag. Reads no file: `evaluate/plan.py` does."""
        for name in ("recon_count", "report_images", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be 0 or more")
        if self.strict and not self.bitstream:
            raise InputError("--strict: compares real with estimated rates, so it needs --bitstream true")
        if not self.codecs:
            raise InputError("missing --checkpoint or --onnx: nothing to judge (see --help)")
        if (self.shards is None) == (self.images is None):
            found = "neither is" if self.shards is None else "both are"
            raise InputError(f"--shards, --images: give one of the two, {found} given")
        if self.curve is not None and len(self.curve) != len(self.codecs):
            raise InputError(f"--curve: {len(self.curve)} names for {len(self.codecs)} codecs; give each one")
        if self.published and self.images is None:
            raise InputError(f"--published: the points are of Kodak's {KODAK_IMAGES} images; give these as --images")

    @property
    def codecs(self) -> list[str]:
        """All codecs as named: checkpoints, then export sets."""
        return [*(self.checkpoint or []), *map(str, self.onnx or [])]

    @property
    def workers_here(self) -> int:
        """Images at a time in this process: `workers`, or its share of this machine's cores."""
        return self.workers or share_of_cores()
