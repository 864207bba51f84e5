"""Read a command line into a frozen dataclass.

Each field of the dataclass is a flag: its type says which values are allowed, and the docstring below it is the help.
`__post_init__` checks the values and raises `InputError`. A class variable `GROUPS` (title -> names of flags), if there
is one, orders the help. A wrong command line is answered in one line that names the flag, with exit code 2.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import math
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from relic import __version__
from relic.errors import InputError, print_error

Config = TypeVar("Config")
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_METAVAR = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":  # every rank reads the same command line
            print_error(self.prog, message)
        sys.exit(2)


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    gone: Mapping[str, str] | None = None,
) -> Config:
    """Read `argv` (None: the process's arguments) into `config_class`, a frozen dataclass.

    `--config FILE.yaml` gives values that the command line overrides. `--print_config` prints all values as such a
    file. A boolean flag without a value means true. `gone` maps removed flags to what to use instead. Exits with
    code 2 and one line on a wrong command line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(config_class, prog)
    origins: dict[str, str] = {}
    try:
        _refuse_gone_and_empty(arguments, gone or {})
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise InputError(f"unknown argument {' '.join(unknown)} (see --help)")
        values = _defaults(config_class) | _convert_all(config_class, vars(given), origins)
        if given.print_config:
            print(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True), end="")
            sys.exit(0)
        if missing := [f"--{name}" for name, value in values.items() if value is dataclasses.MISSING]:
            raise InputError(f"missing {', '.join(missing)} (see --help)")
        return config_class(**values)
    except InputError as error:
        flag = re.match(r"--(\w+)", str(error))
        parser.error((origins.get(flag[1], "") if flag else "") + str(error))


def field_docs(config_class: type) -> dict[str, str]:
    """Field -> the docstring below it, as one line."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def choices_of(hint: Any) -> list[str]:
    """The values that a flag of this type is chosen from; empty where it takes any number, text or path."""
    kinds = _kinds(hint)
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    return choices + (["true", "false"] if bool in kinds else [])


def _build_parser(config_class: type, prog: str) -> _Parser:
    hints, docs, defaults = typing.get_type_hints(config_class), field_docs(config_class), _defaults(config_class)
    required = [name for name, default in defaults.items() if default is dataclasses.MISSING]
    needs = "".join(f" --{name} {_metavar(hints[name])}" for name in required)
    parser = _Parser(
        prog=prog,
        usage=f"%(prog)s{needs} [--flag value ...]",
        description=inspect.getdoc(config_class),
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="help", help="print this")
    parser.add_argument("--version", action="version", version=f"relic {__version__}", help="print relic's version")
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file of flags; the command line wins")
    parser.add_argument("--print_config", action="store_true", default=False, help="print all flags as such a file")
    groups: Mapping[str, tuple[str, ...]] = getattr(config_class, "GROUPS", {})
    sections = {title: parser.add_argument_group(title) for title in groups}
    section_of = {name: sections[title] for title, names in groups.items() for name in names}
    for name, default in defaults.items():
        several: dict[str, Any] = {"nargs": "+"} if _is_list(hints[name]) else {}
        optional: dict[str, Any] = {"nargs": "?", "const": True} if bool in _kinds(hints[name]) else {}
        text = f"{docs[name]}{_default_said(default)}".replace("%", "%%")
        section_of.get(name, parser).add_argument(
            f"--{name}", metavar=_metavar(hints[name]), help=text, **several, **optional
        )
    return parser


def _default_said(default: Any) -> str:
    if default is dataclasses.MISSING:
        return " (required)"
    said = str(default).lower() if isinstance(default, bool) else default
    return "" if default is None or default == "" else f" (default: {said})"


def _defaults(config_class: type) -> dict[str, Any]:
    """Field -> its default; `dataclasses.MISSING` where it must be given."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags as YAML can hold them; null where one is missing."""
    return {
        name: None if value is dataclasses.MISSING
        else [str(part) for part in value] if isinstance(value, list)
        else str(value) if isinstance(value, Path)
        else value
        for name, value in values.items()
    }  # fmt: skip


def _refuse_gone_and_empty(arguments: Sequence[str], gone: Mapping[str, str]) -> None:
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            if flag[2:] in gone:
                raise InputError(f"{flag} is gone: {gone[flag[2:]]}")
            if equals and not value:
                raise InputError(f"{flag} has an empty value")
        elif not argument:
            raise InputError(f"{flag} has an empty value")


def _convert_all(config_class: type, given: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """The values of the files of --config, then of the command line. `origins` notes which flags come from a file."""
    hints, defaults = typing.get_type_hints(config_class), _defaults(config_class)
    values: dict[str, Any] = {}
    sources = [(f"--config {path}: ", _read_yaml(Path(path))) for path in given.get("config", [])]
    for origin, flags in (*sources, ("", {name: given[name] for name in defaults if name in given})):
        for name, value in flags.items():
            if name not in defaults:
                raise InputError(f"{origin}unknown flag {name} (see --help)")
            if value is None and defaults[name] is dataclasses.MISSING:
                continue  # as --print_config writes a flag that is still missing
            origins[name] = origin
            try:
                values[name] = _convert(hints[name], value)
            except ValueError as error:
                said = "null" if value is None else " ".join(value) if isinstance(value, list) and not origin else value
                raise InputError(f"--{name} {said}: {error}") from error
    return values


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"--config {path}: Unexpected config: expected lines of `flag: value`")
    return found


def _convert(hint: Any, value: Any) -> Any:
    """`value` (text, or what YAML made of it) as `hint` wants it. Raises ValueError that says what was expected."""
    kinds = _kinds(hint)
    if types.NoneType in kinds and value in (None, "null"):
        return None
    for kind in kinds:
        with suppress(ValueError):
            return _as_kind(kind, value)
    if choices := choices_of(hint):
        raise ValueError(f"expected {_EXPECTED[bool]}" if hint is bool else f"choose from {', '.join(choices)}")
    element = _is_list(hint)
    wanted = [_EXPECTED[typing.get_args(kind)[0] if element else kind] for kind in kinds if kind is not types.NoneType]
    raise ValueError(f"expected {'a list, each ' if element else ''}{' or '.join(wanted)}")


def _as_kind(kind: Any, value: Any) -> Any:
    text = isinstance(value, str)
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_as_kind(typing.get_args(kind)[0], part) for part in value]
    if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
        return value
    if kind is bool and (isinstance(value, bool) or (text and value.lower() in _BOOLEANS)):
        return _BOOLEANS[str(value).lower()]
    if kind is int and (text or type(value) is int):
        return int(value)
    if kind is float and (type(value) in (int, float) or (text and math.isfinite(float(value)))):
        return float(value)
    if kind in (str, Path) and text:
        return kind(value)
    raise ValueError


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(kind) is list for kind in _kinds(hint))


def _metavar(hint: Any) -> str:
    if choices := choices_of(hint):
        return f"{{{','.join(choices)}}}"
    kind = next(kind for kind in _kinds(hint) if kind is not types.NoneType)
    return _METAVAR[typing.get_args(kind)[0] if _is_list(hint) else kind]
