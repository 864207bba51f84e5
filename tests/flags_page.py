"""Make docs/flags.md from the configs. `make flags` writes it, and a test compares it."""

import sys
from typing import Any

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from export.exchange.config import ExchangeConfig
from export.toolchains.config import CompileConfig, InstallConfig
from prep.config import PrepConfig, UploadConfig, VerifyConfig
from relic.cli import flags_of
from train.config import TrainConfig
from train.count_contexts import ContextsConfig

HEAD = """# Flags

Booleans take `true` or `false` (also `yes`, `no`, `on`, `off`); a flag without a value means true. Every command reads
flags from `--config FILE.yaml`; the command line overrides them. `--print_config` prints all flags as such a file.
`--help` and `--version` print and exit.

A value in such a file means what it means on a command line: `off`, `2017` and `010` are what was typed. `null` or `~`
without quotes takes a value back; a value that begins with `#`, `&`, `*` or `!` needs quotes. Save the file as UTF-8. A
flag that is there twice is refused, and so are YAML's aliases and tags.

## Exit codes

| code | meaning |
|---|---|
| 0 | Done. Training also: it saved after SIGTERM or SIGUSR1 and can be resumed. |
| 1 | The work failed. The last line on standard error says why and what to do. |
| 2 | Refused before the work began: the command line is wrong, or does not fit the files it names. |
| 130 | Interrupted by Ctrl-C. |
| 143 | Ended by SIGTERM. `prep/make_shards.py` can be started again and continues. |

Errors are one line. For wrong input and failed file operations, the environment variable `RELIC_TRACEBACK=1` shows the
traceback, except for flags that cannot be read.

Evaluation and export have no flag `--verify`. They check the hash of every sample on its first
read, which is the default of training too.
"""
TAIL = (
    "`python export/codec.py encode IN OUT.relic --export D` takes `--contexts false` to write streams of version 1, "
    "and `--rdoq` and `--rdoq_lmbda` as `evaluate/run.py` does. "
    "`decode IN.relic OUT --export D` has no other flag.\n"
)
CONFIGS = {
    "prep/make_shards.py": PrepConfig,
    "prep/verify_shards.py": VerifyConfig,
    "prep/upload_shards.py": UploadConfig,
    "train/main.py": TrainConfig,
    "train/count_contexts.py": ContextsConfig,
    "evaluate/run.py": EvaluateConfig,
    "export/onnx_parts.py": ExportConfig,
    "export/install_toolchain.py": InstallConfig,
    "export/compile_parts.py": CompileConfig,
    "export/exchange_streams.py": ExchangeConfig,
}


def flag_table(cli: str, config: Any) -> str:
    """The table of one command in docs/flags.md, from its dataclass."""
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
