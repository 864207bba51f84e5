"""Tell what a training needs of machines, network and store: `python benchmarks/needs.py --gpus 64`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m benchmarks.needs`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._needs import figures
from benchmarks._needs.figures import Gpu
from benchmarks._needs.tables import Training, need_rows, rate_table, set_table
from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.columns import in_columns
from relic.errors import InputError, command
from relic.options import Encoding

PROG = "benchmarks/needs.py"


@dataclasses.dataclass(frozen=True)
class NeedsConfig:
    """Cores, disks, network, requests and memory of a training on 224x224 crops, each with its arithmetic.

    Nothing is measured: the figures per core are those of docs/performance.md and docs/scale.md.
    """

    gpus: int = 8
    """GPUs of the training, over all machines."""
    gpu: Gpu = "h100"
    """Kind of GPU, for the images per second that are assumed of it."""
    gpu_images_per_second: float = 0.0
    """Images per second of one GPU, as benchmarks/gpu.py measures them. 0 takes those assumed of --gpu."""
    encoding: Encoding = "raw"
    """How the crops are stored."""
    images: float = 1e9
    """Images of the set."""
    samples_per_shard: int = 10_000
    """As given to prep/make_shards.py."""
    cached: float = 0.0
    """Part of the set that each machine keeps in its cache (--cache_gb of train/main.py), from 0 to 1."""
    batch_per_gpu: int = 64
    """Images per step and GPU, for the traffic of gradients."""
    markdown: Path | None = None
    """File to write the tables of docs/scale.md to, as Markdown."""

    def __post_init__(self) -> None:
        counts = {"gpus": 1, "images": 1, "samples_per_shard": 1, "batch_per_gpu": 1}
        check_least(self, {**counts, "gpu_images_per_second": 0, "cached": 0})
        if self.cached > 1:
            raise InputError(f"--cached {self.cached}: must be from 0 to 1")


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Print what is needed, and write the tables of the page to --markdown."""
    config = parse(NeedsConfig, argv, prog=PROG)
    check_files(markdown=config.markdown)
    rate = config.gpu_images_per_second or figures.assumed_images_per_second(config.gpu)
    told = (
        "as given"
        if config.gpu_images_per_second
        else f"assumed: {figures.UTILISATION} x {figures.PEAK_TFLOPS[config.gpu]:,g} TFLOP/s "
        f"/ {figures.step_gflop():.1f} GFLOP"
    )
    training = Training(
        config.gpus, rate, config.encoding, round(config.images), config.samples_per_shard, config.cached,
        config.batch_per_gpu,
    )  # fmt: skip
    print(in_columns(need_rows(training, told)), flush=True)
    if config.markdown is not None:
        config.markdown.write_text(f"{rate_table()}\n\n{set_table()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
