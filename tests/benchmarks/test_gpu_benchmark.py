"""The GPU benchmark runs all its sections on a CPU, and a section that is late or fails costs only itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks._gpu.sections import Items, LateError, Section, run_sections
from benchmarks._gpu.table import step_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.torch
@pytest.mark.commands
@pytest.mark.timeout(600)
def test_every_section_runs_on_a_cpu(tmp_path: Path) -> None:
    files = {"json": tmp_path / "gpu.json", "markdown": tmp_path / "steps.md"}
    flags = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    command = [sys.executable, "benchmarks/gpu.py", *flags, "--device", "cpu", "--deadline_factor", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(files["json"].read_text())
    sections = {name: found[name] for name in found if name not in ("machine", "device", "sizes")}
    assert {
        name: sorted(figures) for name, figures in sections.items() if "failed" in figures or "late" in figures
    } == {}
    measured = {
        name: {key: value for key, value in each.items() if key != "seconds"} for name, each in sections.items()
    }
    failed = {
        key: value["failed"]
        for each in measured.values()
        for key, value in each.items()
        if isinstance(value, dict) and "failed" in value
    }
    assert set(failed.values()) == {"RuntimeError: needs CUDA"} and all("CUDA graph" in key for key in failed)
    counts = {name: len(each) for name, each in measured.items()}
    assert counts == {
        "ceilings": 2, "steps": 6, "levers": 7, "ms_ssim": 2, "loop": 3, "fine_tuning": 2, "evaluation": 1, "traces": 1
    }  # fmt: skip
    tuned = measured["fine_tuning"]["fp32, seed 0"]
    assert tuned["start_db"] > 0 and tuned["end_db"] > 0
    assert (tmp_path / measured["traces"]["batch 2"]["trace"]).stat().st_size > 0
    assert files["markdown"].read_text() in done.stdout


@pytest.mark.torch
@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_a_fine_tuning_in_fp32_is_one_without_tf32(precision: str, tf32: bool) -> None:
    """The trainer itself turns TF32 on without mixed precision."""
    import torch

    import train.build
    from benchmarks._gpu.learners import trainer_switches
    from train.arithmetic import set_backends

    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    with trainer_switches(precision):
        vars(train.build)["set_backends"](torch.device("cuda"), mixed=precision == "bf16", deterministic=False)
        assert torch.backends.cudnn.allow_tf32 == tf32 and torch.backends.cudnn.benchmark
    after = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    assert after == before and vars(train.build)["set_backends"] is set_backends


@pytest.mark.timeout(60, method="thread")  # the sections' deadlines use the signal that pytest's would use
def test_a_section_that_is_late_or_fails_keeps_what_it_found_and_costs_only_itself() -> None:
    def late() -> Items:
        yield "first", 1
        while True:
            try:
                time.sleep(60)
            except Exception:  # as a library may do
                continue

    def failing() -> Items:
        yield "first", 2
        raise OSError("no such\ndevice")

    def good() -> Items:
        yield "first", 3
        yield "second", {"images_per_second": 4.0}

    found: dict[str, Any] = {"machine": {}}
    kept: list[str] = []
    sections = [Section("late", 0.3, late), Section("failing", 60, failing), Section("good", 60, good)]
    run_sections(sections, found, lambda: kept.append(json.dumps(found)))
    assert found["late"]["first"] == 1 and found["late"]["late"] == "stopped after 0.3 s"
    assert found["failing"]["first"] == 2 and found["failing"]["failed"] == "OSError: no such device"
    assert found["good"]["second"] == {"images_per_second": 4.0} and set(found["good"]) == {
        "first",
        "second",
        "seconds",
    }
    assert json.loads(kept[0]) == {"machine": {}, "late": {"first": 1}}  # each figure is kept at once
    assert not issubclass(LateError, Exception)


def test_the_table_names_the_card_and_the_precision() -> None:
    machine = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.65", "torch": "2.14.1", "cudnn": "9.12.0", "cpu": "a CPU"}
    steps = {
        "quality 8 both rd, bf16, batch 16": {"images_per_second": 1234.5, "step_ms": 1.0},
        "quality 8 both rd, bf16, batch 256": {"failed": "OutOfMemoryError: CUDA out of memory"},
        "quality 1 both rd, bf16 compiled, batch 16": {"images_per_second": 99.7},
        "seconds": 3.0,
    }
    lines = step_table({"machine": machine, "steps": steps}).splitlines()
    assert lines[0].endswith("on NVIDIA H100 80GB HBM3, driver 580.65, torch 2.14.1, cudnn 9.12.0:")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["codec, what is trained", "precision", "batch 16", "batch 256"]
    assert cells[2:] == [
        ["quality 8 both rd", "bf16", "1,234", "failed"],
        ["quality 1 both rd", "bf16 compiled", "100", ""],
    ]
