"""README and docs agree with the code: the flag tables come from the configs, and the named files exist."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from relic.cli import flags_of, parse
from tests.flags_page import flags_page

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", ROOT / "README.ja.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FLAGS = ROOT / "docs/flags.md"


def test_the_page_of_flags_is_made_from_the_configs() -> None:
    assert FLAGS.read_text() == flags_page()


def test_descriptions_of_flags_name_flags_that_are() -> None:
    page = flags_page()
    flags = set(re.findall(r"^\| `--(\w+)`", page, re.MULTILINE))
    every_command = {"config", "print_config", "help", "version"}
    assert set(re.findall(r"(?<![\w-])--([a-z]\w*)", page)) - flags - every_command == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    scripts = re.findall(r"(?:python|torchrun[^\n]*?) ([\w/]+\.py)", text)
    named = [name for name in re.findall(r"`([\w.]+(?:/[\w.]+)+/?)`", text) if (ROOT / name.split("/")[0]).is_dir()]
    for path in (*scripts, *(name for name in named if not (ROOT / name.split("/")[0] / ".gitkeep").exists())):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_pages_name_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text(), name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def config_of(script: str) -> Any:
    """The config of a command-line file; None for `export/codec.py`, which runs without one."""
    if script == "export/codec.py":
        return None
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    (config,) = {
        found for name, found in vars(module).items() if name.endswith("Config") and dataclasses.is_dataclass(found)
    }
    return config


def commands(page: Path) -> list[tuple[str, str]]:
    """Script and arguments of each command that a page shows, in a block or inside a sentence."""
    text = page.read_text().replace("\\\n", " ")
    shown = re.findall(r"^    (?:\S+=\S+ )?(?:python|torchrun|srun) .*$", text, re.MULTILINE)
    inline = re.findall(r"`(?:python|torchrun) [^`]*`", re.sub(r"\s+", " ", text))
    return [found for line in (*shown, *inline) for found in re.findall(r"(\w+/\w+\.py)([^`#]*)", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_use_flags_that_are_and_go_together(page: Path) -> None:
    for script, arguments in commands(page):
        config, given = config_of(script), set(re.findall(r" --(\w+)", arguments))
        if config is None:
            assert given <= {"export", "contexts", "rdoq", "rdoq_lmbda"}, arguments
            continue
        flags = flags_of(config)
        assert given <= {*flags, "config", "print_config", "help", "version"}, arguments
        placeholders = re.search(r"\$|\bRATE\b", arguments)
        if given and not placeholders and given >= {name for name, flag in flags.items() if flag.required}:
            parse(config, shlex.split(arguments), prog=script)  # SystemExit for values that are refused


def test_the_readme_has_commands_links_and_scripts() -> None:
    assert re.search(r"^    python \S+\.py", README, re.MULTILINE)
    assert re.search(r"^    torchrun .* train/main\.py", README, re.MULTILINE) and "](docs/" in README


JAPANESE = (ROOT / "README.ja.md").read_text()


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^    .*$", text, re.MULTILINE)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def numbers_of_tables(text: str) -> list[list[str]]:
    """The cells of each row that are numbers, which a translation does not change."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row if re.fullmatch(r"\s*[+-]?[\d.]+( %)?\s*", cell)] for row in rows]


def test_the_japanese_readme_has_the_same_commands_tables_and_links() -> None:
    assert code_blocks(JAPANESE) == code_blocks(README)
    assert numbers_of_tables(JAPANESE) == numbers_of_tables(README)
    assert any(numbers_of_tables(README))
    assert set(links(JAPANESE)) - {"README.md"} == set(links(README)) - {"README.ja.md"}
    assert set(re.findall(r"--\w+", JAPANESE)) == set(re.findall(r"--\w+", README))
    assert JAPANESE.count("\n## ") == README.count("\n## ")
