"""docs/flags.md from the configs: `make flags` writes it, a test compares it."""

import sys
from typing import Any

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from prep.config import PrepConfig, VerifyConfig
from relic.cli import flags_of
from train.config import TrainConfig

HEAD = """# Flags

Booleans take `true` or `false`; a bare flag means true. Every command reads `--config FILE.yaml` (the command line
overrides it) and prints the resolved one with `--print_config`. Exit codes: 0 done, 1 the work failed, 2 the command
line is wrong.
"""
TAIL = (
    "`python export/codec.py encode IN OUT.relic --export D` and `decode IN.relic OUT --export D` take nothing else.\n"
)
CONFIGS = {
    "prep/make_shards.py": PrepConfig,
    "prep/verify_shards.py": VerifyConfig,
    "train/main.py": TrainConfig,
    "evaluate/run.py": EvaluateConfig,
    "export/onnx_parts.py": ExportConfig,
}


def flag_table(cli: str, config: Any) -> str:
    """The table in docs/flags.md of a command line, from its dataclass."""
    rows = [f"## `{cli}`", "", "| flag | default | what |", "|---|---|---|"]
    for name, flag in flags_of(config).items():
        choices = [] if flag.kinds == (bool,) else flag.choices
        shown = "" if flag.default in (None, "") else f"`{flag.default}`"
        if isinstance(flag.default, bool):
            shown = f"`{str(flag.default).lower()}`"
        what = flag.doc.replace("|", "\\|")
        among = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        rows.append(f"| `--{name}` | {'required' if flag.required else shown} | {what}{among} |")
    return "\n".join(rows)


def flags_page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(flag_table(cli, config) + "\n" for cli, config in CONFIGS.items()), TAIL])


if __name__ == "__main__":
    sys.stdout.write(flags_page())
