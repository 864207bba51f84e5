"""README and docs say what the code does: the flag tables are made from the configs, the files exist."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from prep.config import PrepConfig, VerifyConfig
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
FLAGS = (ROOT / "docs/flags.md").read_text()
CONFIGS = {
    "prep/make_shards.py": PrepConfig,
    "prep/verify_shards.py": VerifyConfig,
    "train/main.py": TrainConfig,
    "evaluate/run.py": EvaluateConfig,
    "export/onnx_parts.py": ExportConfig,
}


def flag_table(cli: str, config: Any) -> str:
    """The table in docs/flags.md of a command line, from its dataclass."""
    docs = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(config).params}
    hints = typing.get_type_hints(config)
    rows = [f"## `{cli}`", "", "| flag | default | what |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        choices = [
            str(value)
            for part in (hints[field.name], *typing.get_args(hints[field.name]))
            if typing.get_origin(part) is typing.Literal
            for value in typing.get_args(part)
        ]
        if choices and bool in typing.get_args(hints[field.name]):
            choices += ["true", "false"]
        default = field.default
        shown = "required" if default is dataclasses.MISSING else "" if default is None else f"`{default}`"
        if isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        what = " ".join(str(docs[field.name]).split()).replace("|", "\\|")
        among = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        rows.append(f"| `--{field.name}` | {shown if default != '' else ''} | {what}{among} |")
    return "\n".join(rows)


@pytest.mark.parametrize("cli", CONFIGS)
def test_every_flag_stands_in_its_table(cli: str) -> None:
    assert flag_table(cli, CONFIGS[cli]) in FLAGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    rooms = re.findall(r"^\| `((?:relic|prep|train|evaluate|export|samples|tests)[\w/]*)` \|", text, re.MULTILINE)
    scripts = re.findall(r"(?:python|torchrun[^\n]*?) ([\w/]+\.py)", text)
    for path in (*rooms, *scripts):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_use_flags_that_are(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (?:python|torchrun) .*$", text, re.MULTILINE):
        found = re.search(r"((?:prep|train|evaluate|export)/\w+\.py)(.*)", line)
        if found and found[1] in CONFIGS:
            names = {field.name for field in dataclasses.fields(CONFIGS[found[1]])}
            assert set(re.findall(r"--(\w+)", found[2])) - {"nproc_per_node"} <= names, line


def test_the_readme_has_commands_links_and_scripts() -> None:
    assert re.search(r"^    python \S+\.py", README, re.MULTILINE)
    assert re.search(r"^    torchrun .* train/main\.py", README, re.MULTILINE) and "](docs/" in README
