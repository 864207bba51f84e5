"""The flags of the loader benchmark."""

import dataclasses
from pathlib import Path

from benchmarks._shared.flags import check_least
from relic.errors import InputError
from relic.options import Split

USUAL_CROPS, USUAL_COLD_CROPS = 3000, 48_000

_PACKED = ("", "cold", "wait")
_USED_BY = {
    "images": _PACKED, "crops": _PACKED, "work_dir": _PACKED, "epochs": ("", "cold", "shards"),
    "markdown": ("", "cold", "shards"), "plot": ("",), "split": ("shards",), "seconds": ("shards",),
    "gpu_images_per_second": ("shards",), "io_threads": ("cold", "shards"), "consumer_ms": ("cold", "wait"),
    "wait_batches": ("wait",),
}  # fmt: skip
"""Flag -> the flags whose measurements it belongs to; empty stands for the comparison of loaders. Others: to all."""


@dataclasses.dataclass(frozen=True)
class LoaderBenchmarkConfig:
    """Images per second of relic's loader, webdataset, a torch folder loader, and the upper limits of the machine.

    --cold measures the same on crops that are not in memory. --shards D tells what limits the loading of your own set.
    --wait measures how long a consumer with a fixed time per batch waits.
    """

    images: Path | None = None
    """Folder of images to cut the crops from. Default: photographs from installed packages."""
    crops: int | None = None
    """Smallest number of 224x224 crops to pack. Default: 3000; 48000 (7.2 GB) with --cold."""
    batch_size: int = 64
    """Images per batch."""
    epochs: int = 4
    """Epochs per loader, in turns. A figure is the median of the epochs after the first. --cold has short turns."""
    work_dir: Path | None = None
    """Folder for the packed crops, which are kept and used again. Default: a temporary folder. --cold measures its
    disk."""
    json: Path | None = None
    """JSON file to write the figures to."""
    markdown: Path | None = None
    """File to write the table to, as Markdown."""
    plot: Path | None = None
    """PNG file to draw a bar chart of the comparison to."""
    shards: str | None = None
    """Your own shards, to tell what limits them instead of comparing loaders: a folder, or tars or URLs with braces."""
    split: Split = "train"
    """Split of --shards."""
    seconds: float = 10.0
    """Longest time of each measurement of --shards."""
    gpu_images_per_second: float = 0.0
    """Images per second that one GPU trains at, to print how many GPUs --shards feeds."""
    cold: bool = False
    """Compare loaders on crops that are dropped from memory before each turn, and with the reads of fio."""
    wait: bool = False
    """Measure the wait of a consumer of raw and of jpg crops instead of comparing loaders."""
    io_threads: int = 0
    """Reads in flight of relic's loader in --cold and --shards. 0 lets it choose, as train/main.py does."""
    consumer_ms: float | None = None
    """Milliseconds per batch that the consumer of --wait and --cold takes. Default: 20, for jpg crops 30."""
    wait_batches: int = 500
    """Number of batches of --wait, after the first."""

    def __post_init__(self) -> None:
        chosen = [name for name, given in (("shards", self.shards), ("cold", self.cold), ("wait", self.wait)) if given]
        if len(chosen) > 1:
            raise InputError(f"--{chosen[0]} and --{chosen[1]} measure different things; leave out one")
        measured = chosen[0] if chosen else ""
        for field in dataclasses.fields(self):
            used_by = _USED_BY.get(field.name, (measured,))
            if measured not in used_by and getattr(self, field.name) != field.default:
                others = " or ".join(f"--{name}" for name in used_by if name)
                way_out = f"leave out --{measured}" if "" in used_by else f"it needs {others}"
                raise InputError(f"--{field.name} has no effect here; {way_out}")
        check_least(
            self, {"batch_size": 1, "epochs": 2, "wait_batches": 1, "gpu_images_per_second": 0, "io_threads": 0}
        )
        if self.shards is None and self.packed_crops < self.batch_size:
            raise InputError(f"--crops {self.crops}: fewer than one batch (--batch_size {self.batch_size})")
        if self.seconds <= 0:
            raise InputError(f"--seconds {self.seconds}: must be more than 0")
        if self.consumer_ms is not None and (self.consumer_ms < 0 or (self.cold and not self.consumer_ms)):
            raise InputError(f"--consumer_ms {self.consumer_ms}: must be {'more than 0' if self.cold else '0 or more'}")

    @property
    def packed_crops(self) -> int:
        """The number of crops to pack."""
        return self.crops if self.crops is not None else USUAL_COLD_CROPS if self.cold else USUAL_CROPS
