"""The README says what the code does: its flag tables are made from the configs, its files exist."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from prep.config import PrepConfig, VerifyConfig
from relic.cli import choices_of, field_docs
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
    docs = field_docs(config)
    hints = typing.get_type_hints(config)
    rows = [f"### `{cli}`", "", "| flag | default | what |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        choices = [] if hints[field.name] is bool else choices_of(hints[field.name])
        default = field.default
        shown = "required" if default is dataclasses.MISSING else "" if default is None else f"`{default}`"
        if isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        what = docs[field.name].replace("|", "\\|")
        among = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        rows.append(f"| `--{field.name}` | {shown if default != '' else ''} | {what}{among} |")
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
