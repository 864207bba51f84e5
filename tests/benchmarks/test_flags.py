"""What the benchmarks refuse before they measure."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import evaluate, export, gpu, loader, prep, remote, train_step

MAINS = [loader.main, prep.main, train_step.main, evaluate.main, export.main, gpu.main, remote.main]
EVERY = pytest.mark.parametrize(
    "main", MAINS, ids=["loader", "prep", "train_step", "evaluate", "export", "gpu", "remote"]
)


@EVERY
def test_a_file_in_no_folder_is_refused(
    main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "nowhere/x.json"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("error: --json nowhere/x.json: no folder nowhere\n") and error.count("\n") == 1


@EVERY
def test_a_folder_that_takes_no_file_is_refused(
    main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "/proc/x.json"]) == 2
    error = capsys.readouterr().err
    assert "error: --json /proc: /proc is not a folder that can be written to" in error and error.count("\n") == 1


def test_the_sections_of_the_gpu_benchmark_have_an_order(tmp_path: Path) -> None:
    config = gpu.GpuBenchmarkConfig(json=tmp_path / "gpu.json", sections=["loop", "ceilings"])
    assert gpu.make_plan(config).sections == ("ceilings", "loop")
    assert len(gpu.make_plan(dataclasses.replace(config, sections=None)).sections) == 8


def test_a_missing_folder_of_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert prep.main(["--images", "nowhere"]) == 2
    assert capsys.readouterr().err.endswith("error: --images nowhere: no such folder\n")
