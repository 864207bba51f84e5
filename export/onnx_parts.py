"""Write a codec's parts as checked ONNX files: `python export/onnx_parts.py --ckpt F --part all --out D`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m export.onnx_parts`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.config import ExportConfig
from export.plan import make_plan
from relic.cli import parse
from relic.errors import before_work, command

PROG = "export/onnx_parts.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Export. Exit code 0: every part agrees with torch. 1: a part does not, or cannot be written. 2: wrong flags."""
    config = parse(ExportConfig, argv, prog=PROG)
    with before_work():
        plan = make_plan(config)

    from export.exporter import choose_upsample, export_all
    from export.printing import cost_tables, findings_table, parts_table
    from export.source import describe_source, load_source

    with before_work():
        source = load_source(config.ckpt, config.replace_parts, contexts=config.contexts)
    sizes = f"{config.batch}x3x{config.image_height}x{config.image_width}"
    print(f"export: {describe_source(source)}", flush=True)
    upsample = choose_upsample(config, source)
    size = f"{'any size, traced at' if config.dynamic else 'fixed size'} {sizes}"
    print(f"opset {config.opset}, {size}, --upsample {upsample}", flush=True)
    export = export_all(plan, source, upsample)
    print(parts_table(export.exported))
    if export.findings:
        print(f"\n{findings_table(config.target, export.findings)}\n")
    if export.int8:
        print(f"\n{cost_tables(export.int8.cost)}\n")
    print(f"wrote {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
