"""The copy to the GPU as one of the limits of a user's shards."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.loader import main
from tests.conftest import write_shards


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_copy_to_the_gpu_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "own", counts=(40, 24))
    flags = ["--shards", str(tmp_path / "own"), "--json", str(tmp_path / "own.json"), "--batch_size", "8"]
    assert main([*flags, "--epochs", "2", "--seconds", "1"]) == 0
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["device"] == "cuda" and found["ceilings"]["feed"] > 0
    assert "| feed: copies to the GPU alone " in capsys.readouterr().out
