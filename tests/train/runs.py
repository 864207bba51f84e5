"""Run the trainer on a tiny codec in this process, and read the files it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from train.learner import Learner

Run = Callable[..., int]


def tiny(shards: Path, folder: Path, *flags: str) -> list[str]:
    """Arguments of a run that takes seconds: 12 train and 4 val crops, channels 4,6, 4 images per step."""
    given = {flag.split("=")[0] for flag in flags if flag.startswith("--")}
    defaults = {
        "--pretrained": "none",
        "--channels": "4,6",
        "--replace_parts": "all",
        "--epochs": "2",
        "--batch_size": "4",
        "--recon_every": "0",
        "--device": "cpu",
        "--loss_type": "rd",
        "--lr": "1e-3",
    }
    kept = [part for flag, value in defaults.items() if flag not in given for part in (flag, value)]
    return [
        *("--shards", str(shards), "--save_dir", str(folder / "checkpoints"), "--recon_dir", str(folder / "recon")),
        *kept,
        *flags,
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.pt").model


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    text = (folder / "checkpoints" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Killed(BaseException):
    """Simulates the end of the process: nothing in the trainer catches it."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    step = Learner.step

    def counted(self: Learner, batch: Any, number: int) -> Any:
        if number == steps:
            raise Killed
        return step(self, batch, number)

    monkeypatch.setattr(Learner, "step", counted)
