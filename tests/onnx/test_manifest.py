"""export.json: written and read as one type, its version checked."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relic.errors import InputError
from relic.onnx.layout import MANIFEST
from relic.onnx.manifest import (
    ArchitectureEntry,
    ExportManifest,
    ParityEntry,
    PartEntry,
    TablesEntry,
    TensorEntry,
    read_export_manifest,
)

FILE: dict[str, Any] = {"file": "encoder.onnx", "bytes": 3, "sha256": "ab"}
WRITTEN = ExportManifest(
    relic_version="0.1",
    opset=13,
    batch=1,
    height=64,
    width=80,
    dynamic=False,
    upsample="deconv5",
    precision="float32",
    architecture=ArchitectureEntry(channels=(8, 12), replaced="all", name="bmshj2018_factorized"),
    parts={
        "encoder": PartEntry(
            **FILE,
            nodes=7,
            operators={"Conv": 4, "Relu": 3},
            precision="float32",
            input=TensorEntry(name="x", shape=["batch", 3, 64, 80], range=(0.0, 1.0)),
            output=TensorEntry(name="y", shape=[1, 12, 4, 5], range=(-3.5, 4.0)),
            parity=ParityEntry(
                error=1e-6, max_abs_diff=1e-6, tolerance=1e-4, batches=3, changed_symbols=0, checked_on="9 crops"
            ),
        )
    },
    int8=None,
    target=None,
    tables=TablesEntry(**FILE, digest="cd", channels=12),
    checkpoint={"file": "last.pt", "swap_init": "calibrated"},
    versions={"torch": "2"},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    WRITTEN.write(tmp_path)
    assert read_export_manifest(tmp_path) == WRITTEN
    assert read_export_manifest(tmp_path).swap_init == "calibrated"
    content = json.loads((tmp_path / MANIFEST).read_text())
    names = [field.name for field in dataclasses.fields(ExportManifest)]
    assert list(content) == ["format", "version", *names]
    assert (content["format"], content["version"]) == ("relic-export", 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "relic-checkpoint"}, "format relic-checkpoint, not relic-export"),
        ({"version": 2}, "export format 2, this relic reads 1; export again"),
        ({"architecture": {}}, "not readable"),
        ({"parts": {"encoder": {}}}, "not readable"),
        ({"tables": 3}, "not readable"),
    ],
)
def test_another_format_and_a_damaged_file_are_refused_by_name(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    WRITTEN.write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=said) as caught:
        read_export_manifest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / MANIFEST}: ")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "relic-export", "version": 1}'])
def test_what_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="not readable"):
        read_export_manifest(tmp_path)


def test_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not readable"):
        read_export_manifest(tmp_path)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside objects and lists."""
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*at, key)
        yield from places(part, (*at, key))


@pytest.mark.parametrize("value", [5.5, -1, 10**30, "\x1b", True, None, [], {}, [[1]], {"a": {"b": 1}}, float("nan")])
def test_every_value_is_typed(value: Any, tmp_path: Path) -> None:
    WRITTEN.write(tmp_path)
    written = json.loads((tmp_path / MANIFEST).read_text())
    accepted = []
    for place in places(written):
        content = json.loads((tmp_path / MANIFEST).read_text())
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        before, inner[place[-1]] = inner[place[-1]], value
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_text(json.dumps(content))
        try:
            read_export_manifest(folder)
        except InputError as error:
            assert str(error).startswith(f"{folder / MANIFEST}: ") and "\n" not in str(error)
            assert len(str(error)) < len(str(folder)) + 300
        else:
            accepted.append((place, before))
    # Numbers stand for numbers and texts for texts; int8, target and checkpoint hold what their writers want.
    free = {"checkpoint", "int8", "target"}
    for place, before in accepted:
        alike = type(before) is type(value) or (isinstance(before, float) and isinstance(value, int | float))
        assert place[0] in free or "shape" in place or alike or not value, place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": [8, 70000]}, "70000 channels"),
        ({"channels": [0, 12]}, "0 channels"),
        ({"channels": [8, 12, 3]}, r"architecture channels is \[8, 12, 3\]"),
        ({"channels": [8, True]}, "architecture channels is True"),
        ({"replaced": "both"}, "architecture replaced is both"),
        ({"replaced": None}, "architecture replaced is None"),
        ({"more": 1}, "architecture more is unknown"),
    ],
)
def test_an_architecture_that_no_codec_has_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    WRITTEN.write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    content["architecture"] |= change
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        read_export_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\xff", '{"version": ' + "9" * 5000 + "}", " " * (1 << 25)]
)
def test_text_that_breaks_a_parser_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="not readable"):
        read_export_manifest(tmp_path)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(InputError, match="not readable"):
        read_export_manifest(tmp_path)
