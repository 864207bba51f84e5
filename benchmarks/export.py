"""Time the exported parts in onnxruntime: `python benchmarks/export.py`."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m benchmarks.export`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.codec.constants import STRIDE
from relic.errors import InputError, command
from relic.files import write_json
from relic.options import Upsample

PROG = "benchmarks/export.py"


@dataclasses.dataclass(frozen=True)
class ExportBenchmarkConfig:
    """Milliseconds of encoder and decoder in onnxruntime on this CPU: GDN and ReLU, fp32 and INT8, one thread and all.

    The weights are random, because they do not change the time.
    """

    channels: str = "128,192"
    """Channels N,M of the codec. Default: those of CompressAI's quality 1 to 5."""
    sizes: str = "224x224,1280x720"
    """Comma-separated image sizes WIDTHxHEIGHT, multiples of 16."""
    upsample: Upsample = "subpixel"
    """The decoder's upsampling, as in `export/onnx_parts.py`."""
    rounds: int = 3
    """Turns per model. A figure is the median of all runs."""
    json: Path | None = None
    """JSON file to write the figures to."""
    plot: Path | None = None
    """PNG file to draw a bar chart to."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d{0,3},[1-9]\d{0,3}", self.channels):
            raise InputError(f"--channels {self.channels}: expected two whole numbers N,M, as 128,192")
        for size in self.sizes.split(","):
            sides = size.split("x")
            if len(sides) != 2 or not all(side.isdecimal() and int(side) and int(side) % STRIDE == 0 for side in sides):
                raise InputError(f"--sizes {size}: expected WIDTHxHEIGHT, multiples of {STRIDE}, as 1280x720")
        check_least(self, {"rounds": 1})

    @property
    def channel_pair(self) -> tuple[int, int]:
        """(N, M)."""
        n, m = self.channels.split(",")
        return int(n), int(m)

    @property
    def width_height_pairs(self) -> list[tuple[int, int]]:
        """(width, height) of each size."""
        return [(int(width), int(height)) for width, height in (size.split("x") for size in self.sizes.split(","))]


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures to --json and --plot."""
    config = parse(ExportBenchmarkConfig, argv, prog=PROG)
    check_files(json=config.json, plot=config.plot)

    import onnxruntime

    from benchmarks._export.figures import plot_timing, timing_table
    from benchmarks._export.timed_parts import timed_parts
    from benchmarks._export.timing import import_seconds, measure, speedups
    from benchmarks._shared.machine import machine
    from relic.machine import available_cores

    sizes = config.width_height_pairs
    figures = measure(
        list(timed_parts(config.channel_pair, config.upsample)), sizes, config.channel_pair[1], config.rounds
    )
    quotients = speedups(figures, sizes)
    seconds = import_seconds()
    print(timing_table(figures, quotients, sizes, config.upsample))
    print(f"export/codec.py: {seconds:.2f} s from the start of Python until everything is imported", flush=True)
    if config.plot is not None:
        title = "bmshj2018_factorized N={} M={} in onnxruntime {}, cores: {}"
        plot_timing(
            config.plot, figures, sizes, title.format(*config.channel_pair, onnxruntime.__version__, available_cores())
        )
    if config.json is not None:
        settings = {
            "channels": config.channels,
            "upsample": config.upsample,
            "rounds": config.rounds,
            "onnxruntime": onnxruntime.__version__,
        }
        found = {**figures, "codec_import_seconds": seconds, "ratios": quotients}
        write_json(config.json, {**found, "settings": settings, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
