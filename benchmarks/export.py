"""Time the exported parts in onnxruntime: `python benchmarks/export.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m benchmarks.export`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.export_config import ExportBenchmarkConfig
from relic.cli import parse
from relic.errors import command
from relic.files import write_json

PROG = "benchmarks/export.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures where asked."""
    config = parse(ExportBenchmarkConfig, argv, prog=PROG)

    import onnxruntime

    from benchmarks.machine import machine
    from benchmarks.onnx_figures import plot_timing, timing_table
    from benchmarks.onnx_timing import import_seconds, measure, speedups
    from benchmarks.timed_parts import timed_parts
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
