"""The README says what the code does: its flag tables are made from the configs, its files exist."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from prep.config import PrepConfig, VerifyConfig
from relic.cli import flags_of
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = {
    "prep/make_shards.py": PrepConfig,
    "prep/verify_shards.py": VerifyConfig,
    "train/main.py": TrainConfig,
    "evaluate/run.py": EvaluateConfig,
    "export/onnx_parts.py": ExportConfig,
}


def flag_table(cli: str, config: Any) -> str:
    """The README's table of a command line, from its dataclass."""
    rows = [f"### `{cli}`", "", "| flag | default | what |", "|---|---|---|"]
    for name, flag in flags_of(config).items():
        choices = [] if flag.kinds == (bool,) else flag.choices
        shown = "" if flag.default in (None, "") else f"`{flag.default}`"
        if isinstance(flag.default, bool):
            shown = f"`{str(flag.default).lower()}`"
        what = flag.doc.replace("|", "\\|")
        among = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        rows.append(f"| `--{name}` | {'required' if flag.required else shown} | {what}{among} |")
    return "\n".join(rows)


@pytest.mark.parametrize("cli", CONFIGS)
def test_every_flag_stands_in_its_table(cli: str) -> None:
    assert flag_table(cli, CONFIGS[cli]) in README


def test_paths_and_links_exist() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")]
    rooms = re.findall(r"^\| `((?:relic|prep|train|evaluate|export|samples|tests)[\w/]*)` \|", README, re.MULTILINE)
    scripts = re.findall(r"(?:python|torchrun[^\n]*?) ([\w/]+\.py)", README)
    assert links and rooms and scripts
    for path in (*links, *rooms, *scripts):
        assert (ROOT / path).exists(), path


def test_commands_in_the_readme_use_flags_that_are() -> None:
    text = README.replace("\\\n", " ")
    for line in re.findall(r"^    (?:python|torchrun) .*$", text, re.MULTILINE):
        found = re.search(r"((?:prep|train|evaluate|export)/\w+\.py)(.*)", line)
        assert found, line
        if found[1] in CONFIGS:
            names = {field.name for field in dataclasses.fields(CONFIGS[found[1]])}
            assert set(re.findall(r"--(\w+)", found[2])) <= names, line
