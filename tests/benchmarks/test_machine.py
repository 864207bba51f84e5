"""The machine of a measurement, with and without a GPU."""

from pathlib import Path

import pytest

from benchmarks._shared.machine import machine


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H100 80GB HBM3, 580.65.06'; echo 'NVIDIA H100 80GB HBM3, 580.65.06'",
         {"gpu": "NVIDIA H100 80GB HBM3", "gpus": 2, "driver": "580.65.06"}),
        ("echo no devices were found; exit 6", {}),
        (None, {}),
    ],
    ids=["two GPUs", "a driver without a GPU", "no driver"],
)  # fmt: skip
def test_the_gpu_and_its_driver_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: dict[str, object]
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    found = machine()
    assert {name: found[name] for name in ("gpu", "gpus", "driver") if name in found} == expected
    assert ("cudnn" in found) == bool(expected)
