"""Compile an export by a vendor's compiler: `python export/compile_parts.py --export D --toolchain qnn`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m export.compile_parts`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.toolchains.config import CompileConfig
from export.toolchains.plan import make_plan
from relic.cli import parse
from relic.errors import before_work, command

PROG = "export/compile_parts.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Compile. Exit code 0: both parts compile and were compared. 1: the compiler refuses one. 2: wrong flags."""
    config = parse(CompileConfig, argv, prog=PROG)
    with before_work():
        plan = make_plan(config)

    from export.toolchains.compilation import compile_all
    from export.toolchains.report import compiled_table, equality_line, quality_table

    report = compile_all(plan)
    print(compiled_table(report))
    print(f"\n{quality_table(report)}\n\n{equality_line(report)}")
    print(f"wrote {plan.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
