"""The flags of the benchmarks, checked before anything is packed or measured."""

import dataclasses
from pathlib import Path

from relic.errors import InputError
from relic.options import Split


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
    split: Split = "train"
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
        _check_files({"--json": self.json, "--plot": self.plot})


@dataclasses.dataclass(frozen=True)
class PrepBenchmarkConfig:
    """Images/s of make_shards.py by 1 worker and by all, and of the bare loop of its work, with nothing written.

    Files are read from the page cache: the images are gone through several times.
    """

    images: Path | None = None
    """Folder of JPEGs, or of COCO's layout; without it, photographs from installed packages."""
    images_per_worker: int = 2400
    """Images a worker packs in a run, and a process of a loop goes through."""
    rounds: int = 3
    """Rounds of all measurements; a figure is their median."""
    listed: int = 118_287
    """Files in the folder whose listing is timed; as many as in COCO's train2017."""
    work_dir: Path | None = None
    """Folder to put a temporary one into, on the disk to measure; without it the system's."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        for name, smallest in {"images_per_worker": 20, "rounds": 1, "listed": 1}.items():
            if getattr(self, name) < smallest:
                raise InputError(f"--{name} {getattr(self, name)}: must be {smallest} or more")
        for flag, folder in (("--images", self.images), ("--work_dir", self.work_dir)):
            if folder is not None and not folder.is_dir():
                raise InputError(f"{flag} {folder}: no such folder")
        _check_files({"--json": self.json})


def _check_files(files: dict[str, Path | None]) -> None:
    for flag, path in files.items():
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: no folder {path.parent}")
