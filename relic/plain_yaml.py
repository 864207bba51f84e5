"""YAML files of lines `flag: value`, which `--config` reads and training writes. No value is larger than its file.

Aliases and tags are refused: ten lines of aliases can stand for a text of gigabytes. So are two lines of one name, of
which YAML would silently take the last.
"""

from pathlib import Path
from typing import Any

import yaml

from relic.errors import InputError

MAX_BYTES = 1 << 17
"""PyYAML reads 50 KB per second. All flags of a command have less than 4 KB."""
_DEPTH = 2
"""A list of values inside the lines."""
_NULLS = ("null", "Null", "NULL", "~")

Given = str | list[str | None] | None
"""A value as text. None: null."""


def read_flags(path: Path) -> dict[str, Given]:
    """Name -> value, as text: `off`, `2017` and `010` are what they are on a command line, whatever YAML makes of them.

    Raises InputError that says what is wrong and in which line, without the file's name.
    """
    root = _root(_read_text(path))
    return {name.value: _given(name.value, value) for name, value in root.value}


def read_values(path: Path) -> dict[str, Any]:
    """Name -> value, with YAML's types. Raises InputError as `read_flags` does."""
    text = _read_text(path)
    _root(text)
    try:
        values: dict[str, Any] = yaml.safe_load(text)
    except Exception as error:  # PyYAML's constructors raise any type, for example for the date 2017-99-99
        raise InputError(f"not YAML: {error}") from error
    return values


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise InputError("not a file; write the flags to a file first")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"has over {MAX_BYTES:,} bytes; expected lines of the form `flag: value`")
    # Windows' editors mark UTF-16 and UTF-8 by these first characters.
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} is not {encoding.removesuffix('-sig').upper()}; save the file as UTF-8"
        ) from None


def _root(text: str) -> yaml.MappingNode:
    """The lines of a file: names and values, of which each is a scalar or a list of scalars."""
    try:
        _check_events(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError("Unexpected config: expected lines of the form `flag: value`")
    seen = set()
    for name, _ in root.value:
        if not isinstance(name, yaml.ScalarNode):
            raise InputError(f"line {_line(name)}: expected lines of the form `flag: value`")
        if name.value in seen:
            raise InputError(f"line {_line(name)}: {name.value} is there twice; keep one")
        seen.add(name.value)
    return root


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(f"line {line}: aliases (& and *) are not read; put text that begins with them in quotes")
        if getattr(event, "tag", None):
            raise InputError(f"line {line}: tags (!) are not read; put text that begins with one in quotes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise InputError(f"line {line}: expected a value, or a list of values")


def _given(name: str, node: yaml.Node) -> Given:
    if isinstance(node, yaml.SequenceNode):
        return [_scalar(name, part) for part in node.value]
    return _scalar(name, node)


def _scalar(name: str, node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"line {_line(node)}: {name}: expected a value, or a list of values")
    text: str = node.value
    if node.style is None and text in _NULLS:
        return None
    if not text and node.style is None:
        raise InputError(
            f"line {_line(node)}: {name} has no value; write null, or put text that begins with # in quotes"
        )
    return text


def _line(part: yaml.Node | yaml.Event) -> int:
    assert part.start_mark is not None
    line: int = part.start_mark.line
    return line + 1
