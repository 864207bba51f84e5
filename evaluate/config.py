"""Flags of `evaluate/run.py`. Imports no torch: a wrong command line is answered at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluate.folder import list_images
from relic.codec.constants import EMBEDDED
from relic.errors import InputError
from relic.files import check_folder
from relic.loader.remote import resolve_shards

ORIGINALS = "origin"
"""Folder of the original pictures, beside one of reconstructions for each checkpoint."""

GONE = {
    "coco_dir": "pass a folder of images as --images, or packed shards as --shards",
    "use_prepared": "pass packed shards as --shards, or a folder of images as --images",
    "num_workers": "leave it out: shards are read by threads, as many as there are cores",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge checkpoints on shards or on a folder of images: PSNR, MS-SSIM, estimated rate and real bitstreams.

    One process: `python evaluate/run.py ...`; several: `torchrun --nproc_per_node 8 evaluate/run.py ...`.
    """

    checkpoint: list[str]
    """Checkpoints of ours or CompressAI's state dict files, one or more; `embedded` is the small codec we ship."""
    shards: str | None = None
    """Folder of shards (of `prep/make_shards.py`, or any WebDataset of images), or tars or URLs as
    `.../val-{000000..000004}.tar`; this or --images."""
    split: Literal["val", "train"] = "val"
    """Split of --shards."""
    images: Path | None = None
    """Folder of images of any sizes, searched recursively; this or --shards."""
    bitstream: bool = True
    """Encode and decode every image for real, and check the result; without, the rate is only estimated."""
    strict: bool = False
    """Fail when real and estimated rate differ by more than 1 % + 8 bytes an image."""
    out: Path = Path("recon/eval")
    """Folder of metrics.json, per_image.csv and the reconstructions."""
    recon_count: int = 16
    """Images whose reconstructions are written as PNG: the first so many."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself or is not there, naming the flag, before torch is loaded."""
        if self.recon_count < 0:
            raise InputError(f"--recon_count {self.recon_count}: must be 0 or more")
        if self.strict and not self.bitstream:
            raise InputError("--strict: compares real with estimated rates, so it needs --bitstream true")
        if (self.shards is None) == (self.images is None):
            found = "neither is" if self.shards is None else "both are"
            raise InputError(f"--shards, --images: give one of the two, {found} given")
        for checkpoint in self.checkpoint:
            if checkpoint != EMBEDDED and not Path(checkpoint).is_file():
                raise InputError(f"--checkpoint {checkpoint}: no such file; give a checkpoint, or `{EMBEDDED}`")
        _refuse_twice(self.checkpoint)
        check_folder("--out", self.out)
        if self.shards is not None:
            folder = resolve_shards(self.shards, self.split).folder
            if folder.resolve() == self.out.resolve():
                raise InputError(f"--out {self.out}: holds the shards; results need a folder of their own")
        if self.images is not None:
            self._check_images(self.images)

    def _check_images(self, images: Path) -> None:
        list_images(images)
        source, out = images.resolve(), self.out.resolve()
        if source == out or source in out.parents or out in source.parents:
            raise InputError(f"--out {self.out}: lies inside --images {images} or around it; results need their own")

    @property
    def labels(self) -> list[str]:
        """A short, unique name for each checkpoint, fit for a folder."""
        return unique_labels([Path(checkpoint).resolve() for checkpoint in self.checkpoint])


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


def _refuse_twice(checkpoints: Sequence[str]) -> None:
    seen: set[Path] = set()
    for checkpoint in checkpoints:
        path = Path(checkpoint).resolve()
        if path in seen:
            raise InputError(f"--checkpoint {checkpoint}: given twice")
        seen.add(path)
