"""Flags of `evaluate/run.py`. Imports no torch: a wrong command line is answered at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from evaluate.folder import list_images
from relic.codec.constants import EMBEDDED
from relic.errors import InputError
from relic.files import check_folder
from relic.loader.remote import resolve_shards
from relic.machine import share_of_cores
from relic.onnx.layout import DECODER, ENCODER, MANIFEST, TABLES
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
        """Refuse what contradicts itself or is not there, naming the flag, before torch is loaded."""
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
        for checkpoint in self.checkpoint or []:
            if checkpoint != EMBEDDED and not Path(checkpoint).is_file():
                raise InputError(f"--checkpoint {checkpoint}: no such file; give a checkpoint, or `{EMBEDDED}`")
        for folder in self.onnx or []:
            _check_export(folder)
        _refuse_twice(self.checkpoint or [], "--checkpoint")
        _refuse_twice(list(map(str, self.onnx or [])), "--onnx")
        if self.curve is not None and len(self.curve) != len(self.codecs):
            raise InputError(f"--curve: {len(self.curve)} names for {len(self.codecs)} codecs; give each one")
        check_folder("--out", self.out)
        if self.shards is not None:
            folder = resolve_shards(self.shards, self.split).folder
            if folder.resolve() == self.out.resolve():
                raise InputError(f"--out {self.out}: holds the shards; results need a folder of their own")
        if self.images is not None:
            self._check_images(self.images)
        elif self.published:
            raise InputError(f"--published: the points are of Kodak's {KODAK_IMAGES} images; give these as --images")

    def _check_images(self, images: Path) -> None:
        num_images = len(list_images(images))
        if self.published and num_images != KODAK_IMAGES:
            raise InputError(f"--published: the points are of Kodak's {KODAK_IMAGES} images, {images} has {num_images}")
        source, out = images.resolve(), self.out.resolve()
        if source == out or source in out.parents or out in source.parents:
            raise InputError(f"--out {self.out}: lies inside --images {images} or around it; results need their own")

    @property
    def codecs(self) -> list[str]:
        """All codecs as named: checkpoints, then export sets."""
        return [*(self.checkpoint or []), *map(str, self.onnx or [])]

    @property
    def labels(self) -> list[str]:
        """A short, unique name for each codec, fit for a folder."""
        return unique_labels([Path(codec) if codec == EMBEDDED else Path(codec).resolve() for codec in self.codecs])

    @property
    def workers_here(self) -> int:
        """Images at a time in this process: `workers`, or its share of this machine's cores."""
        return self.workers or share_of_cores()


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """File stems, or where these are not unique with as many folders before them (up to three) as it takes.

    `a/last.pt` and `b/last.pt` become `a-last` and `b-last`; if all else fails they are numbered.
    """
    for num_folders in range(4):
        labels = ["-".join((*_last_folders(path, num_folders), path.stem)) for path in paths]
        if len({*labels, ORIGINALS}) == len(paths) + 1:
            return labels
    return [f"{number}-{path.stem}" for number, path in enumerate(paths, start=1)]


def _last_folders(path: Path, count: int) -> tuple[str, ...]:
    folders = path.parts[1:-1]  # without the root
    return folders[max(0, len(folders) - count) :]


def _refuse_twice(codecs: Sequence[str], flag: str) -> None:
    seen: set[Path] = set()
    for codec in codecs:
        path = Path(codec).resolve()
        if path in seen:
            raise InputError(f"{flag} {codec}: given twice")
        seen.add(path)


def _check_export(folder: Path) -> None:
    for name in (ENCODER, DECODER, TABLES, MANIFEST):
        if not (folder / name).is_file():
            raise InputError(f"--onnx {folder}: holds no {name}; export/onnx_parts.py --part all writes a whole set")
