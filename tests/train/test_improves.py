"""The default flags make a calibrated codec better, from the first steps on, on photographs that it has not seen."""

import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from relic.options import LossType
from relic.shards.writer import ShardWriter
from samples.photographs import TRAIN, VAL, find_photograph
from tests.conftest import encode
from tests.train.runs import lines
from train.main import main

BATCH, SIDE = 8, 176


def pack_windows(folder: Path, split: str, names: tuple[str, ...], count: int) -> None:
    """Windows of the named photographs in turn, as a WebDataset without a manifest."""
    rng = random.Random(split)
    photographs = [Image.open(find_photograph(name)).convert("RGB") for name in names]
    with ShardWriter(folder / f"{split}-000000.tar") as writer:
        for number in range(count):
            photograph = photographs[number % len(photographs)]
            side = int(SIDE * rng.uniform(1, min(1.7, min(photograph.size) / SIDE)))
            left, top = (rng.randint(0, size - side) for size in photograph.size)
            box = (left, top, left + side, top + side)
            window = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
            writer.add(f"{number:06d}", ".jpg", encode(window, "jpg"), {})


@pytest.fixture(scope="module", params=[6, 30])
def photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("photographs")
    pack_windows(folder, "train", TRAIN, request.param * BATCH)
    pack_windows(folder, "val", VAL, 24)
    return folder, request.param


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loss", get_args(LossType))
@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_few_steps_lower_the_loss(photographs: tuple[Path, int], tmp_path: Path, parts: str, loss: str) -> None:
    shards, steps = photographs
    flags = f"--pretrained embedded --replace_parts {parts} --loss_type {loss} --epochs 1 --batch_size {BATCH}"
    folders = ["--shards", str(shards), "--save_dir", str(tmp_path / "checkpoints"), "--recon_every", "0"]
    assert main([*folders, *flags.split(), "--device", "cpu", "--contexts", "false"]) == 0
    start, end = (line["loss"] for line in lines(tmp_path, "validate"))
    assert lines(tmp_path, "train")[-1]["step"] == steps
    assert end <= start
