"""Measure the evaluator beside CompressAI's, with real bitstreams: `python benchmarks/evaluate.py`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # run as a file: same import root as `python -m benchmarks.evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.errors import command
from relic.files import write_json

PROG = "benchmarks/evaluate.py"


@dataclasses.dataclass(frozen=True)
class EvaluateBenchmarkConfig:
    """Images/s of evaluate/run.py and of `python -m compressai.utils.eval_model`, from PNG files to all numbers.

    Both code every image for real. Imports, and building the models, are left out for both; starting the coding
    processes is not. They take turns, each in a process of its own, so a machine's drift meets both.
    """

    images: Path | None = None
    """Folder of images to cut the crops of 224x224 from; without it, photographs from installed packages."""
    crops: int = 400
    """Crops to judge, at least."""
    rounds: int = 3
    """Turns of each evaluator; a figure is the median of those after the first."""
    codec: str = "embedded"
    """The codec to judge: `embedded`, a checkpoint without ReLU, or N,M: random weights of so many channels."""
    workers: int = 0
    """Of relic; 0: all cores."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_least(self, {"crops": 1, "rounds": 2, "workers": 0})
        check_files(json=self.json)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures where asked."""
    config = parse(EvaluateBenchmarkConfig, argv, prog=PROG)

    from benchmarks._evaluate.evaluators import coder_speedups, loose_crops, measure_evaluators, open_ours
    from benchmarks._shared.machine import machine
    from relic.machine import available_cores

    workers = config.workers or available_cores()
    with TemporaryDirectory(prefix="relic-benchmark-") as folder:
        crops = loose_crops(Path(folder), config.images, config.crops, available_cores())
        ours = open_ours(config.codec)
        speeds = measure_evaluators(config.codec, crops, config.rounds, workers)
        coder = coder_speedups(ours, crops, available_cores())
    ratio = speeds.relic / speeds.compressai
    print(f"{config.codec}, {speeds.num_images} crops of 224x224, relic with {workers} workers")
    print(f"{'':12}{'images/s':>10}{'PSNR dB':>10}{'bpp':>9}")
    print(f"{'relic':12}{speeds.relic:10.1f}{speeds.relic_psnr_db:10.3f}{speeds.relic_bpp:9.4f}")
    print(f"{'compressai':12}{speeds.compressai:10.1f}{speeds.compressai_psnr_db:10.3f}{speeds.compressai_bpp:9.4f}")
    print("(CompressAI's tool pads a crop to 256x256)")
    print(f"{'relic/compressai':28}{ratio:8.2f}")
    gains = f"threads x{coder.threads:.2f}, processes x{coder.processes:.2f}"
    print(f"compiled coder, {available_cores()} at a time against one: {gains}")
    if config.json is not None:
        figures = {**speeds._asdict(), "relic/compressai": ratio, "coder": coder._asdict()}
        write_json(config.json, figures | {"workers": workers, "codec": config.codec, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
