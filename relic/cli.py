"""What every command line shares: flags read into a frozen dataclass, and errors said in one line.

Flags are the dataclass's fields, their help the fields' docstrings, their checks its `__post_init__` (which raises
`InputError`). Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 interrupted.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import sys
import time
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from relic.errors import InputError

Config = TypeVar("Config")
_TYPE_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}


_OF_THE_FILE = ("Problems parsing config", "Option '", "Unexpected config")


class _Parser(ArgumentParser):
    given: Sequence[str] = ()
    """The command line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":  # every rank reads the same command line
            print_error(self.prog, _config_file(message, self.given) + _one_line(message))
        sys.exit(2)


def print_error(prog: str, message: str) -> None:
    """One line on standard error; under `torchrun` also what its closing report says of this process."""
    line = " ".join(message.split())
    print(f"{prog}: error: {line}", file=sys.stderr)
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError):
            details = {"py_callstack": line, "timestamp": int(time.time())}
            Path(report).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}))


def _config_file(message: str, arguments: Sequence[str]) -> str:
    """`--config FILE: ` where the error is in that file: a fault of its form, or a flag that only it gives."""
    named = [text.removeprefix("--config=") for text in arguments if text.startswith("--config=")]
    named += [path for flag, path in itertools.pairwise(arguments) if flag == "--config"]
    if not named:
        return ""
    key = re.search(r'^--(\w+)|[Pp]arser key "(\w+)"', message)
    flag = (key[1] or key[2]) if key else ""
    if flag and flag != "config" and not any(text.split("=")[0] == f"--{flag}" for text in arguments):
        files = [path for path in named if _sets(Path(path), flag)]
        return f"--config {files[-1]}: " if files else ""
    return f"--config {named[-1]}: " if message.lstrip().startswith(_OF_THE_FILE) else ""


def _sets(path: Path, flag: str) -> bool:
    return path.is_file() and re.search(rf"^{flag}\s*:", path.read_text(errors="replace"), re.MULTILINE) is not None


def _one_line(message: str) -> str:
    """jsonargparse's several lines as one that names the flag."""
    found = re.search(r'[Pp]arser key "(?P<key>[\w.]+)":\s*(?P<rest>.*)', message, re.DOTALL)
    if found:
        rest = found["rest"]
        choices = re.search(r"Literal\[(?P<choices>[^\]]*)\]", rest)
        value = re.search(r"Got value: (?P<v>.*)|Given value: (?P<w>.*)", rest)
        given = f" {(value['v'] or value['w'] or '').strip()}" if value else ""
        expected = re.findall(r"<class '(\w+)'>", rest)
        if choices:
            among = choices["choices"].replace("'", "") + (", true, false" if "'bool'" in rest else "")
            return f"--{found['key']}{given}: choose from {among}"
        if value and expected:
            wanted = " or ".join(_TYPE_NAMES.get(name, name) for name in expected if name != "NoneType")
            return f"--{found['key']}{given}: expected {wanted}"
        return f"--{found['key']}: {' '.join(rest.split())}"
    required = re.search(r"arguments are required: (?P<names>.*)", message)
    if required:
        return "missing " + ", ".join(f"--{name.strip()}" for name in required["names"].split(",")) + " (see --help)"
    option = re.search(r"Option '(?P<name>[^']*)' is not accepted", message)
    if option:
        return f"unknown flag {option['name']} (see --help)"
    unknown = re.search(r"unrecognized arguments: (?P<rest>.*)", message, re.IGNORECASE)
    if unknown:
        return f"unknown argument {unknown['rest'].strip()} (see --help)"
    return " ".join(message.split())


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    gone: Mapping[str, str] | None = None,
) -> Config:
    """Read `argv` (None: the process's arguments) into `config_class`, a frozen dataclass.

    `--config FILE.yaml` gives defaults and `--print_config` prints the result. A boolean flag without a value means
    true. `gone` maps removed flags to what to use instead. Exits with code 2 and one line on a wrong command line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog=prog, description=config_class.__doc__, formatter_class=DefaultHelpFormatter)
    parser.given = arguments
    for flag, advice in (gone or {}).items():
        if any(argument.split("=")[0] == f"--{flag}" for argument in arguments):
            parser.error(f"--{flag} is gone: {advice}")
    for flag, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            parser.error(f"{flag if argument == '' else argument} has an empty value")
    parser.add_argument("--config", action="config", help="YAML file of these flags; the command line overrides it.")
    hints = typing.get_type_hints(config_class)
    docs = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(config_class).params}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        several: dict[str, Any] = {"nargs": "+", "metavar": field.name.upper()} if _is_list(hints[field.name]) else {}
        parser.add_argument(
            f"--{field.name}",
            type=_element_of(hints[field.name]) if several else hints[field.name],
            required=required,
            default=None if required else field.default,
            help=docs[field.name],
            **several,
        )
    booleans = {f"--{name}" for name, hint in hints.items() if bool in (hint, *typing.get_args(hint))}
    namespace = parser.parse_args(_spell_out(arguments, booleans))
    values = {field.name: namespace[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    try:
        return config_class(**values)
    except InputError as error:
        parser.error(str(error))


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (hint, *typing.get_args(hint)))


def _element_of(hint: Any) -> Any:
    """`str` of `list[str]` and of `list[str] | None`."""
    found = next(part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is list)
    return typing.get_args(found)[0]


def _spell_out(arguments: list[str], booleans: set[str]) -> list[str]:
    """Give a bare boolean flag its value: `--amp --lr 1` becomes `--amp true --lr 1`."""
    spelled = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        following = arguments[place + 1] if place + 1 < len(arguments) else "--"
        if argument in booleans and following.startswith("--"):
            spelled.append("true")
    return spelled


def command(prog: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a `main(argv) -> exit code`: user errors and full disks become one line and exit code 1.

    Set `RELIC_TRACEBACK=1` to see where such an error was raised.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            warnings.filterwarnings("ignore", category=FutureWarning)
            try:
                return main(argv)
            except (InputError, OSError) as error:
                if os.environ.get("RELIC_TRACEBACK"):
                    raise
                print_error(prog, str(error))
                return 1
            except KeyboardInterrupt:
                print(f"{prog}: interrupted", file=sys.stderr)
                return 130

        return run

    return decorate
