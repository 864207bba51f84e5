"""Compare the evaluator's speed with CompressAI's, with real bitstreams: `python benchmarks/evaluate.py`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m benchmarks.evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.errors import command
from relic.files import temporary_folder, write_json

PROG = "benchmarks/evaluate.py"


@dataclasses.dataclass(frozen=True)
class EvaluateBenchmarkConfig:
    """Images per second of evaluate/run.py and `python -m compressai.utils.eval_model`, from PNG files to all figures.

    Both encode and decode every image. The time for imports and for building the models is not included, the time to
    start the coding processes is. Both run in turns, each in its own process, so a change in the machine's speed
    affects both.
    """

    images: Path | None = None
    """Folder of images to cut the 224x224 crops from. Default: photographs from installed packages."""
    crops: int = 400
    """Smallest number of crops to evaluate."""
    rounds: int = 3
    """Turns per evaluator. A figure is the median of the turns after the first."""
    codec: str = "embedded"
    """The codec: `embedded`, a checkpoint without ReLU, or N,M for random weights with N,M channels."""
    workers: int = 0
    """Number of relic's workers; 0: one per core."""
    json: Path | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        check_least(self, {"crops": 1, "rounds": 2, "workers": 0})


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json."""
    config = parse(EvaluateBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json)

    from benchmarks._evaluate.evaluators import coder_speedups, loose_crops, measure_evaluators, open_ours
    from benchmarks._shared.machine import machine
    from relic.columns import in_columns
    from relic.machine import available_cores

    workers = config.workers or available_cores()
    with temporary_folder() as folder:
        crops = loose_crops(folder, config.images, config.crops, available_cores())
        ours = open_ours(config.codec)
        speeds = measure_evaluators(config.codec, crops, config.rounds, workers)
        coder = coder_speedups(ours, crops, available_cores())
    ratio = speeds.relic / speeds.compressai
    print(f"{config.codec}, {speeds.num_images} crops of 224x224, relic with {workers} workers")
    both = (
        ("relic", speeds.relic, speeds.relic_psnr_db, speeds.relic_bpp),
        ("compressai", speeds.compressai, speeds.compressai_psnr_db, speeds.compressai_bpp),
    )
    rows = [(name, f"{rate:.1f}", f"{psnr_db:.3f}", f"{bpp:.4f}") for name, rate, psnr_db, bpp in both]
    print(in_columns([("", "images/s", "PSNR dB", "bpp"), *rows]))
    print("(CompressAI's tool pads each crop to 256x256)")
    print(f"relic/compressai: {ratio:.2f}")
    gains = f"threads x{coder.threads:.2f}, processes x{coder.processes:.2f}"
    print(f"compiled coder, {available_cores()} at the same time compared with one: {gains}")
    if config.json is not None:
        figures = {**speeds._asdict(), "relic/compressai": ratio, "coder": coder._asdict()}
        write_json(config.json, figures | {"workers": workers, "codec": config.codec, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
