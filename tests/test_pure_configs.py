"""Building a config reads no file, no shard and no network. A plan opens the data, once."""

import builtins
import io
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

import evaluate.plan
import evaluate.run
import export.onnx_parts
import export.plan
from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from relic.shards import manifest, shard_set

CONFIGS: dict[str, Callable[[], Any]] = {
    "evaluate a URL": lambda: EvaluateConfig(
        checkpoint=["a/last.pt", "b/last.pt"],
        onnx=[Path("set")],
        shards="https://host.invalid/val-{000000..000004}.tar",
    ),
    "evaluate a folder": lambda: EvaluateConfig(checkpoint=["embedded"], images=Path("images"), published=True),
    "export": lambda: ExportConfig(ckpt="last.pt", part="all", out=Path("out"), shards=Path("shards")),
    "export INT8": lambda: ExportConfig(
        ckpt="last.pt", part="encoder", out=Path("out/e.onnx"), int8=True, calib_shards=Path("shards")
    ),
}
ACCESS = [
    *((builtins, "open"), (io, "open"), (socket, "socket"), (subprocess, "Popen")),
    *((os, name) for name in ("open", "stat", "lstat", "access", "listdir", "scandir", "mkdir", "readlink")),
    *((Path, name) for name in ("stat", "exists", "is_file", "is_dir", "open", "resolve", "glob", "iterdir")),
    *((os.path, name) for name in ("exists", "lexists", "isfile", "isdir", "realpath")),
]


@contextmanager
def nothing_to_read() -> Iterator[None]:
    """Inside the block, every access to files, hosts and programs fails."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"asked the machine: {args}")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ACCESS:
            patch.setattr(owner, name, refuse)
        yield


@pytest.mark.parametrize("build", CONFIGS.values(), ids=CONFIGS)
def test_building_a_config_reads_nothing(build: Callable[[], Any]) -> None:
    with nothing_to_read():
        config = build()
    assert config == build()


@pytest.mark.parametrize(
    ("plan", "build"),
    [(evaluate.plan, CONFIGS["evaluate a folder"]), (export.plan, CONFIGS["export"])],
    ids=["evaluate", "export"],
)
def test_a_plan_reads(plan: Any, build: Callable[[], Any]) -> None:
    """The check of the test above detects an access."""
    with nothing_to_read(), pytest.raises(AssertionError, match="asked the machine"):
        plan.make_plan(build())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are opened from here on, one entry per opening."""
    splits: list[str] = []
    read = manifest.read_manifest

    def count(folder: Path, split: str) -> Any:
        splits.append(split)
        return read(folder, split)

    monkeypatch.setattr(shard_set, "read_manifest", count)
    return splits


def test_an_evaluation_opens_its_shards_once(crops: Path, tmp_path: Path, opened: list[str]) -> None:
    argv = ["--checkpoint", "embedded", "--shards", str(crops), "--out", str(tmp_path / "out"), "--workers", "1"]
    argv += ["--device", "cpu", "--recon_count", "0", "--report_images", "1", "--references", "false"]
    assert evaluate.run.main(argv) == 0
    assert opened == ["val"]


def test_an_export_opens_its_shards_once(crops: Path, tmp_path: Path, opened: list[str]) -> None:
    argv = ["--ckpt", "embedded", "--part", "encoder", "--out", str(tmp_path / "e.onnx"), "--input_size", "32"]
    assert export.onnx_parts.main([*argv, "--shards", str(crops)]) == 0
    assert opened == ["val"]


def test_an_unreachable_host_is_no_wrong_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise ConnectionError("host.invalid: cannot be reached")

    monkeypatch.setattr(evaluate.plan, "resolve_shards", fail)
    argv = ["--checkpoint", "embedded", "--shards", "https://host.invalid/val-000000.tar", "--out", str(tmp_path)]
    assert evaluate.run.main(argv) == 1
