"""Runs of the trainer on a tiny codec, in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from train.main import main

Run = Callable[..., int]


def tiny(shards: Path, folder: Path, *flags: str) -> list[str]:
    """Arguments of a run of seconds: 12 train and 4 val crops, a codec of channels 4,6, steps of 4 images."""
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


@pytest.fixture
def run(crops: Path, tmp_path: Path) -> Run:
    """`run("--epochs", "1", folder=...)`: train and return the exit code."""

    def call(*flags: str, folder: Path = tmp_path) -> int:
        return main(tiny(crops, folder, *flags))

    return call
