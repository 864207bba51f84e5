"""Building a config reads no file, no shard and no network. A plan opens the data, once."""

import builtins
import io
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

import evaluate.plan
import evaluate.run
import export.exchange.plan
import export.onnx_parts
import export.plan
import export.toolchains.plan
import prep.planning
import train.plan
from benchmarks._loader.config import LoaderBenchmarkConfig
from benchmarks.evaluate import EvaluateBenchmarkConfig
from benchmarks.export import ExportBenchmarkConfig
from benchmarks.gpu import GpuBenchmarkConfig
from benchmarks.needs import NeedsConfig
from benchmarks.prep import PrepBenchmarkConfig
from benchmarks.remote import RemoteBenchmarkConfig
from benchmarks.train_step import StepBenchmarkConfig
from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from export.exchange.config import ExchangeConfig
from export.toolchains.config import CompileConfig, InstallConfig
from prep.config import PrepConfig, UploadConfig, VerifyConfig
from samples.build import SamplesConfig
from samples.demo import DemoConfig
from samples.wallpapers import WallpapersConfig
from studies.calibration import CalibrationConfig
from studies.int8 import Int8Config
from studies.teachers import TeachersConfig
from studies.zoo import ZooConfig
from train.config import TrainConfig
from train.count_contexts import ContextsConfig

ROOT = Path(__file__).resolve().parents[1]
HERE = Path("missing")
CONFIGS: dict[str, Callable[[], Any]] = {
    "PrepConfig": lambda: PrepConfig(HERE, HERE / "out", width=320, height=240, crop="random", crops_per_image=4),
    "VerifyConfig": lambda: VerifyConfig(HERE),
    "UploadConfig": lambda: UploadConfig(HERE, "s3://bucket.invalid/set"),
    "TrainConfig": lambda: TrainConfig(
        shards="https://host.invalid/train-{000000..000117}.tar",
        val_shards="missing",
        save_dir=HERE,
        resume="auto",
        save_url="s3://bucket.invalid/run",
        cache_gb=1,
    ),
    "TrainConfig with a checkpoint": lambda: TrainConfig(shards="missing", pretrained="missing/last.pt"),
    "ContextsConfig": lambda: ContextsConfig("missing.pt", "missing", HERE),
    "EvaluateConfig of a URL": lambda: EvaluateConfig(
        checkpoint=["a/last.pt", "b/last.pt"],
        onnx=[Path("set")],
        shards="https://host.invalid/val-{000000..000004}.tar",
    ),
    "EvaluateConfig": lambda: EvaluateConfig(checkpoint=["embedded"], images=HERE, published=True),
    "ExportConfig": lambda: ExportConfig(ckpt="last.pt", part="all", out=HERE, shards=HERE),
    "ExportConfig of INT8": lambda: ExportConfig(
        ckpt="last.pt", part="encoder", out=HERE / "e.onnx", int8=True, calib_shards=HERE
    ),
    "CompileConfig": lambda: CompileConfig(HERE, "ethos-u", device="ethos-u85-512", shards=HERE),
    "ExchangeConfig": lambda: ExchangeConfig(HERE, HERE, ckpt="missing.pt", toolchains=["qnn"], json=HERE / "f.json"),
    "InstallConfig": lambda: InstallConfig("qnn", accept_licence=True),
    "GpuBenchmarkConfig": lambda: GpuBenchmarkConfig(json=HERE / "f.json", work_dir=HERE),
    "LoaderBenchmarkConfig": lambda: LoaderBenchmarkConfig(images=HERE, work_dir=HERE, json=HERE / "f.json"),
    "PrepBenchmarkConfig": lambda: PrepBenchmarkConfig(images=HERE, work_dir=HERE, json=HERE / "f.json"),
    "NeedsConfig": lambda: NeedsConfig(gpus=64, markdown=HERE / "needs.md"),
    "RemoteBenchmarkConfig": lambda: RemoteBenchmarkConfig(json=HERE / "f.json"),
    "StepBenchmarkConfig": lambda: StepBenchmarkConfig(json=HERE / "f.json"),
    "EvaluateBenchmarkConfig": lambda: EvaluateBenchmarkConfig(images=HERE, json=HERE / "f.json"),
    "ExportBenchmarkConfig": lambda: ExportBenchmarkConfig(json=HERE / "f.json", plot=HERE / "f.png"),
    "CalibrationConfig": lambda: CalibrationConfig(HERE, HERE),
    "Int8Config": lambda: Int8Config(HERE, HERE, HERE),
    "TeachersConfig": lambda: TeachersConfig(HERE),
    "ZooConfig": lambda: ZooConfig(HERE, HERE, quality=["1..8"]),
    "DemoConfig": lambda: DemoConfig(out=HERE),
    "SamplesConfig": lambda: SamplesConfig(HERE),
    "WallpapersConfig": lambda: WallpapersConfig(HERE),
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


def test_every_config_is_tried_here() -> None:
    rooms = ("prep", "train", "evaluate", "export", "benchmarks", "studies", "samples")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    classes = {name for path in files for name in re.findall(r"^class (\w+Config)\b", path.read_text(), re.MULTILINE)}
    assert classes == {name.split()[0] for name in CONFIGS}


@pytest.mark.parametrize("build", CONFIGS.values(), ids=CONFIGS)
def test_building_a_config_reads_nothing(build: Callable[[], Any]) -> None:
    with nothing_to_read():
        config = build()
        if isinstance(config, TrainConfig):
            assert config.initialisation == "calibrated"
            assert config.plain_values()["shards"] == config.shards
    assert config == build()


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (prep.planning.plan_splits, "PrepConfig"),
        (train.plan.make_plan, "TrainConfig with a checkpoint"),
        (evaluate.plan.make_plan, "EvaluateConfig"),
        (export.plan.make_plan, "ExportConfig"),
        (export.toolchains.plan.make_plan, "CompileConfig"),
        (export.exchange.plan.make_plan, "ExchangeConfig"),
    ],
)
def test_a_plan_reads(plan: Callable[[Any], Any], name: str) -> None:
    """And the guard of the test above sees it."""
    config = CONFIGS[name]()
    with nothing_to_read(), pytest.raises(AssertionError, match="asked the machine"):
        plan(config)


@pytest.mark.torch
def test_an_evaluation_opens_its_shards_once(crops: Path, tmp_path: Path, opened: list[Path]) -> None:
    argv = ["--checkpoint", "embedded", "--shards", str(crops), "--out", str(tmp_path / "out"), "--workers", "1"]
    argv += ["--device", "cpu", "--recon_count", "0", "--report_images", "1", "--references", "false"]
    assert evaluate.run.main(argv) == 0
    assert [path.name for path in opened if path.parent == crops and path.suffix == ".json"] == ["val.json"]


@pytest.mark.torch
def test_an_export_opens_its_shards_once(crops: Path, tmp_path: Path, opened: list[Path]) -> None:
    argv = ["--ckpt", "embedded", "--part", "encoder", "--out", str(tmp_path / "e.onnx"), "--input_size", "32"]
    assert export.onnx_parts.main([*argv, "--shards", str(crops)]) == 0
    assert [path.name for path in opened if path.parent == crops and path.suffix == ".json"] == ["val.json"]


def test_an_unreachable_host_is_no_wrong_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise ConnectionError("host.invalid: cannot be reached")

    monkeypatch.setattr(evaluate.plan, "resolve_shards", fail)
    argv = ["--checkpoint", "embedded", "--shards", "https://host.invalid/val-000000.tar", "--out", str(tmp_path)]
    assert evaluate.run.main(argv) == 1
