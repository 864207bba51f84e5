"""The flags of the loader's benchmark, checked before anything is packed or measured."""

import dataclasses
from pathlib import Path
from typing import Literal

from relic.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoaderBenchmarkConfig:
    """Images/s of relic's loader, of webdataset, of torch's folder loader, and of what the machine can do at most.

    --shards D measures your own set instead; --wait measures how long a consumer of a fixed pace waits.
    """

    images: Path | None = None
    """Folder of images to cut the crops from; without it, photographs from installed packages."""
    crops: int = 3000
    """Crops of 224x224 to pack, at least."""
    batch_size: int = 64
    """Images in a batch."""
    epochs: int = 4
    """Epochs a loader; a figure is the median of those after the first."""
    work_dir: Path | None = None
    """Folder for the packed crops, kept and used again; without it a temporary one."""
    json: Path | None = None
    """File for the figures."""
    plot: Path | None = None
    """PNG file for a bar chart of the comparison."""
    shards: Path | None = None
    """Measure this folder of shards, your own, instead of comparing loaders."""
    split: Literal["train", "val"] = "train"
    """Split of --shards."""
    gpu_images_per_second: float = 0.0
    """Images/s one GPU trains at: says how many GPUs --shards feeds."""
    wait: bool = False
    """Measure a consumer's wait on raw and on jpg crops instead of comparing loaders."""
    consumer_ms: float | None = None
    """Milliseconds the consumer of --wait takes a batch; without it 20 on raw and 30 on jpg crops."""
    wait_batches: int = 500
    """Batches of --wait, after the first."""

    def __post_init__(self) -> None:
        if self.shards is not None and self.wait:
            raise InputError("--wait packs its own crops; leave out --shards")
        if self.plot is not None and (self.wait or self.shards is not None):
            raise InputError("--plot draws the comparison of loaders; leave out --wait and --shards")
        if self.consumer_ms is not None and not self.wait:
            raise InputError("--consumer_ms goes with --wait")
        if self.gpu_images_per_second and self.shards is None:
            raise InputError("--gpu_images_per_second goes with --shards")
        if self.shards is None and self.crops < self.batch_size:
            raise InputError(f"--crops {self.crops}: fewer than one batch (--batch_size {self.batch_size})")
        least = {"crops": 1, "batch_size": 1, "epochs": 2, "wait_batches": 1, "gpu_images_per_second": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"--{name} {getattr(self, name)}: must be {smallest} or more")
        if self.consumer_ms is not None and self.consumer_ms < 0:
            raise InputError(f"--consumer_ms {self.consumer_ms}: must be 0 or more")
        for flag, path in (("--json", self.json), ("--plot", self.plot)):
            if path is not None and not path.parent.is_dir():
                raise InputError(f"{flag} {path}: no folder {path.parent}")
