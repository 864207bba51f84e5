"""Read a command line into a frozen dataclass.

Each field of the dataclass is a flag. Its type gives the allowed values, and the docstring below it is the help text.
`__post_init__` checks the values and raises `InputError`. An optional class variable `GROUPS` (title -> names of flags)
orders the help. A wrong command line prints one line that names the flag and exits with code 2.
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
from relic.errors import InputError, naming, print_error, speaks_for_all
from relic.plain_yaml import Given, read_flags

Config = TypeVar("Config")
_EXPECTED = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path on this machine",
}  # fmt: skip
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""A path that begins so would name a folder `s3:`."""
_METAVAR = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_LARGEST = (1 << 63) - 1
_SHOWN = 200
"""Characters of a value that a message shows."""
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A command-line flag, made from a field of a config."""

    name: str
    default: Any
    """`dataclasses.MISSING` for a required flag."""
    doc: str
    """The docstring below the field, as one line."""
    kinds: tuple[Any, ...]
    """Allowed types of a value: int, float, bool, str, Path, or a Literal of strings."""
    several: bool
    """Whether the flag takes a list of such values."""
    optional: bool
    """Whether `null` is allowed."""

    @property
    def required(self) -> bool:
        """Whether the flag must be given."""
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> list[str]:
        """The values to choose from; empty if any number, text or path is allowed."""
        literals = [kind for kind in self.kinds if typing.get_origin(kind) is Literal]
        choices = [str(choice) for literal in literals for choice in typing.get_args(literal)]
        return choices + (["true", "false"] if bool in self.kinds else [])

    @property
    def metavar(self) -> str:
        """The placeholder for the value in the help."""
        return f"{{{','.join(self.choices)}}}" if self.choices else _METAVAR[self.kinds[0]]

    @property
    def help(self) -> str:
        """The help text: the docstring and the default."""
        if self.required:
            return f"{self.doc} (required)"
        said = str(self.default).lower() if isinstance(self.default, bool) else self.default
        return self.doc if self.default in (None, "") else f"{self.doc} (default: {said})"

    def convert(self, value: Given | bool) -> Any:
        """Convert `value`: text, a list of text, or None for null. Raises InputError that says what is expected."""
        if self.optional and value is None:
            return None
        with suppress(ValueError):
            if not self.several:
                return self._convert_one(value)
            return [self._convert_one(part) for part in (value if isinstance(value, list) else [value])]
        if self.several and isinstance(value, list):
            value = next((part for part in value if not self._takes(part)), value)
        said = "null" if value is None else f"{value!s:.{_SHOWN}}"
        way_out = ""
        if self.kinds == (Path,) and (found := _URL.match(said)):
            said = f"{found[0]}..."  # what follows may hold a password
            way_out = "; --help tells which flags take a URL"
        if self.choices and self.kinds != (bool,):
            raise InputError(f"--{self.name} {said}: choose from {', '.join(self.choices)}")
        expected = " or ".join(_EXPECTED[kind] for kind in self.kinds)
        raise InputError(f"--{self.name} {said}: expected {'a list, each ' if self.several else ''}{expected}{way_out}")

    def _takes(self, part: Any) -> bool:
        with suppress(ValueError):
            self._convert_one(part)
            return True
        return False

    def _convert_one(self, value: Any) -> Any:
        if isinstance(value, bool):  # a flag without a value
            value = str(value)
        if not isinstance(value, str):
            raise ValueError
        for kind in self.kinds:
            if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
                return value
            if kind is bool and value.lower() in _BOOLEANS:
                return _BOOLEANS[value.lower()]
            if kind is int and abs(int(value)) <= _LARGEST:
                return int(value)
            if kind is float and math.isfinite(float(value)):
                return float(value)
            if kind in (str, Path) and "\0" not in value and not (kind is Path and _URL.match(value)):
                os.fsencode(value)  # a ValueError for what cannot be a path
                return kind(value)
        raise ValueError


def flags_of(config_class: type) -> dict[str, Flag]:
    """Name -> flag of a config class, in the order of its fields."""
    hints = typing.get_type_hints(config_class)
    definition = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }
    flags = {}
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        kinds = tuple(part for part in parts if part is not types.NoneType)
        several = typing.get_origin(kinds[0]) is list
        flags[field.name] = Flag(
            name=field.name,
            default=field.default,
            doc=docs[field.name],
            kinds=typing.get_args(kinds[0]) if several else kinds,
            several=several,
            optional=len(kinds) < len(parts),
        )
    return flags


class _FlagsParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if speaks_for_all():
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

    `--config FILE.yaml` gives values that the command line overrides. `--print_config` prints all values in the form of
    such a file. A boolean flag without a value means true. `gone` maps removed flags to the advice for the user. A
    wrong command line prints one line and exits with code 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = flags_of(config_class)
    parser = _build_parser(config_class, flags, prog)
    origins: dict[str, str] = {}
    try:
        _refuse_gone_and_empty(arguments, gone or {})
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise InputError(f"unknown argument {' '.join(unknown)} (see --help)")
        values = {name: flag.default for name, flag in flags.items()} | _convert_all(flags, vars(given), origins)
        if given.print_config:
            print(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True), end="")
            sys.exit(0)
        if missing := [f"--{name}" for name, value in values.items() if value is dataclasses.MISSING]:
            raise InputError(f"missing {', '.join(missing)} (see --help)")
        return config_class(**values)
    except InputError as error:
        named = re.match(r"--(\w+)", str(error))
        parser.error((origins.get(named[1], "") if named else "") + str(error))


def _build_parser(config_class: type, flags: Mapping[str, Flag], prog: str) -> _FlagsParser:
    needs = "".join(f" --{flag.name} {flag.metavar}" for flag in flags.values() if flag.required)
    parser = _FlagsParser(
        prog=prog,
        usage=f"%(prog)s{needs} [--flag value ...]",
        description=inspect.getdoc(config_class),
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="help", help="print this help and exit")
    parser.add_argument(
        "--version", action="version", version=f"relic {__version__}", help="print the version and exit"
    )
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of flags; the command line overrides it"
    )
    parser.add_argument(
        "--print_config", action="store_true", default=False, help="print all flags as a --config file and exit"
    )
    groups: Mapping[str, tuple[str, ...]] = getattr(config_class, "GROUPS", {})
    sections = {title: parser.add_argument_group(title) for title in groups}
    section_of = {name: sections[title] for title, names in groups.items() for name in names}
    for name, flag in flags.items():
        takes: dict[str, Any] = {"nargs": "+"} if flag.several else {}
        if bool in flag.kinds:
            takes = {"nargs": "?", "const": True}
        section = section_of.get(name, parser)
        section.add_argument(f"--{name}", metavar=flag.metavar, help=flag.help.replace("%", "%%"), **takes)
    return parser


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags as plain values for YAML; null for a flag that is missing."""
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


def _convert_all(flags: Mapping[str, Flag], given: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """The values of the --config files, then of the command line. `origins` gets the file that each flag comes from."""
    values: dict[str, Any] = {}
    sources = [(f"--config {path}: ", _read_config(Path(path))) for path in given.get("config", [])]
    typed = {name: given[name] for name in flags if name in given}
    # A file writes null without quotes. A command line has no quotes, so there the word stands for it.
    typed = {name: None if value == "null" and flags[name].optional else value for name, value in typed.items()}
    for origin, found in (*sources, ("", typed)):
        for name, value in found.items():
            if name not in flags:
                raise InputError(f"{origin}unknown flag {name} (see --help)")
            if value is None and flags[name].required:
                continue  # --print_config writes null for a required flag that is missing
            origins[name] = origin
            values[name] = flags[name].convert(value)
    return values


def _read_config(path: Path) -> Mapping[str, Given]:
    with naming(f"--config {path}"):
        return read_flags(path)
