"""Files of --config: the same text means the same as on a command line, and no file takes time or memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from relic import plain_yaml
from relic.cli import parse
from relic.errors import InputError, print_error
from relic.plain_yaml import read_flags, read_values


@dataclass(frozen=True)
class Flags:
    """A flag of each type."""

    number: int = 1
    """A whole number."""
    rate: float = 1.0
    """A number."""
    on: bool = False
    """A switch."""
    verify: Literal["first", "off"] = "first"
    """A choice that YAML takes for a boolean."""
    auto: Literal["auto"] | bool = "auto"
    """A choice or a switch."""
    name: str = ""
    """Text."""
    folder: Path = Path()
    """A path."""
    resume: str | None = None
    """Text or nothing."""
    several: list[str] | None = None
    """A list."""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def parsed(folder: Path, text: str | bytes) -> Flags:
    return parse(Flags, ["--config", str(write(folder, text))], prog="test")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("verify: off", "verify", "off"),
        ("on: off", "on", False),
        ("on: Yes", "on", True),
        ("auto: true", "auto", True),
        ("auto: auto", "auto", "auto"),
        ("number: 010", "number", 10),
        ("number: 1_000", "number", 1000),
        ("rate: 1e-3", "rate", 1e-3),
        ("rate: 1", "rate", 1.0),
        ("name: 2017", "name", "2017"),
        ("name: 12:30", "name", "12:30"),
        ("name: 2017-01-01", "name", "2017-01-01"),
        ("name: off", "name", "off"),
        ("name: 0x10", "name", "0x10"),
        ("name: ''", "name", ""),
        ("folder: 2017", "folder", Path("2017")),
        ("folder: 1e5", "folder", Path("1e5")),
        ("resume: '#recycle/last.pt'", "resume", "#recycle/last.pt"),
        ("resume: '&a'", "resume", "&a"),
        ("resume: 'null'", "resume", "null"),
        ("resume: '~'", "resume", "~"),
        ("resume: ~/last.pt", "resume", "~/last.pt"),
        ("resume: null", "resume", None),
        ("resume: ~", "resume", None),
        ("several: embedded", "several", ["embedded"]),
        ("several: [a, 2017, off]", "several", ["a", "2017", "off"]),
        ("several:\n- a\n- 'null'", "several", ["a", "null"]),
        (b"\xef\xbb\xbfnumber: 3", "number", 3),
        ("number: 3\r\nname: ä\r\n".encode("utf-16"), "name", "ä"),
    ],
)
def test_a_value_is_what_was_typed(tmp_path: Path, text: str | bytes, name: str, value: Any) -> None:
    assert getattr(parsed(tmp_path, text), name) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("number: 12:30", "--number 12:30: expected a whole number"),
        ("number: 0x10", "--number 0x10: expected a whole number"),
        ("number: 3.0", "--number 3.0: expected a whole number"),
        ("number: true", "--number true: expected a whole number"),
        ("number: [3]", "--number ['3']: expected a whole number"),
        ("number: null", "--number null: expected a whole number"),
        ("number: " + "9" * 5000, "expected a whole number"),
        ("number: 99999999999999999999", "expected a whole number"),
        ("rate: .inf", "--rate .inf: expected a number"),
        ("rate: .nan", "--rate .nan: expected a number"),
        ("on: 1", "--on 1: expected true or false"),
        ("verify: on", "--verify on: choose from first, off"),
        ('name: "a\\0b"', "expected text"),
        ('folder: "\\ud800"', "expected a path"),
        (
            "resume: #recycle/last.pt",
            "line 1: resume has no value; write null, or put text that begins with # in quotes",
        ),
        ("resume:", "line 1: resume has no value"),
        ("resume: &a x", "line 1: aliases (& and *) are not read"),
        ("name: !!python/name:os.system x", "line 1: tags (!) are not read"),
        ("name: !x y", "line 1: tags (!) are not read"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("number: 1\nnumber: 2", "line 2: number is there twice; keep one"),
        ("number: {a: 1}", "line 1: number: expected a value, or a list of values"),
        ("several: [[a]]", "line 1: expected a value, or a list of values"),
        ("[a]: 3", "expected a value, or a list of values|expected lines of the form"),
        ("? [a]\n: 3", "line 1: expected lines of the form `flag: value`"),
        ("- a", "expected lines of the form `flag: value`"),
        ("", "expected lines of the form `flag: value`"),
        ("number: 1\n---\nnumber: 2", "not YAML"),
        ("name: Küche\n".encode("latin-1"), "line 1 is not UTF-8; save the file as UTF-8"),
        ("number: 1\nname: Küche\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"\xff\xfea", "is not UTF-16"),
        ("[" * 100_000, "expected a value, or a list of values"),
        ("{" * 100_000, "expected a value, or a list of values"),
        ("a: " * 40_000, "not YAML"),
        ("nothing: 1", "unknown flag nothing"),
        (b"\0\0\0", "not YAML"),
    ],
)
def test_what_is_none_is_one_line_with_the_files_name(
    tmp_path: Path, text: str | bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(tmp_path, text)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and len(error) < 1600
    assert error.startswith(f"test: error: --config {tmp_path / 'a.yaml'}: ")
    assert any(each in error for each in said.split("|")), error


def test_a_large_file_and_a_fifo_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_yaml, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="has over 100 bytes"):
        read_flags(write(tmp_path, "a: " + "x" * 200))
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(InputError, match="not a file"):
        read_flags(tmp_path / "fifo.yaml")


def test_typed_values_are_yaml_s(tmp_path: Path) -> None:
    assert read_values(write(tmp_path, "a: 1\nb: true\nc: null\nd: x\n")) == {"a": 1, "b": True, "c": None, "d": "x"}
    for text in ("a: 2017-99-99", "a: " + "9" * 5000, "a: &a x", "- a"):
        with pytest.raises(InputError):
            read_values(write(tmp_path, text))


def test_null_on_a_command_line_takes_a_value_back(tmp_path: Path) -> None:
    path = write(tmp_path, "resume: x")
    assert parse(Flags, ["--config", str(path), "--resume", "null"], prog="test").resume is None
    for name in ("#1/last.pt", "~", "&x", "!y", "Null", "- a", "[x]", "a: b"):
        assert parse(Flags, ["--resume", name], prog="test").resume == name


def test_a_message_is_short_and_obeyed_by_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("test", "\x1b[2J" + "a" * 10**6 + "\nthe way out")
    error = capsys.readouterr().err
    assert error.startswith("test: error: \\x1b[2Jaaa") and error.endswith(" the way out\n") and len(error) < 1600


def test_a_url_for_a_path_is_refused_without_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """It would become a folder called `s3:`."""
    with pytest.raises(SystemExit, match="2"):
        parse(Flags, ["--folder", "s3://user:hidden@bucket/x"], prog="x")
    said = "x: error: --folder s3://...: expected a path on this machine; --help tells which flags take a URL\n"
    assert capsys.readouterr().err == said
