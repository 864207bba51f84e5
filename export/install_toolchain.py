"""Install a compiler for export/compile_parts.py: `python export/install_toolchain.py --toolchain openvino`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m export.install_toolchain`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.toolchains.config import InstallConfig
from export.toolchains.environment import install
from export.toolchains.registry import TOOLCHAINS
from relic.cli import parse
from relic.errors import command

PROG = "export/install_toolchain.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Install. Exit code 0: it is there. 1: pip could not install it. 2: wrong flags."""
    config = parse(InstallConfig, argv, prog=PROG)
    toolchain = TOOLCHAINS[config.toolchain]
    print(f"{toolchain.title}, {toolchain.gigabytes:g} GB; licence: {toolchain.licence}", flush=True)
    print(f"installed in {install(config.toolchain)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
