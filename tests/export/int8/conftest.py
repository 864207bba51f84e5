"""INT8 exports of the tiny codec, and the crops that they are calibrated and measured on."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from relic.options import Parts
from tests.conftest import write_shards
from tests.export.conftest import MakeCheckpoint

SIDE, CROPS = 64, 100


class Crops(NamedTuple):
    folder: Path
    val: list[npt.NDArray[np.uint8]]


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """A folder with 105 train crops (calibration needs 100 at least) and 6 val crops."""
    folder = tmp_path_factory.mktemp("calibration-crops")
    write_shards(folder, "train", (60, 45), side=SIDE, seed=3)
    return Crops(folder, list(write_shards(folder, "val", (6,), side=SIDE, seed=4).values()))


Export = Callable[..., Path]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint, crops: Crops) -> Export:
    """A function from the replaced parts and flags to an INT8 export."""
    from export.onnx_parts import main

    made: dict[tuple[str, ...], Path] = {}

    def run(replaced: Parts = "all", *flags: str) -> Path:
        if (replaced, *flags) not in made:
            out = tmp_path_factory.mktemp("int8") / "set"
            common = ["--ckpt", str(make_checkpoint(replaced)), "--part", "all", "--out", str(out)]
            common += ["--input_size", str(SIDE), "--int8", "--calib_shards", str(crops.folder)]
            assert main([*common, "--calib_images", str(CROPS), *flags]) == 0
            made[(replaced, *flags)] = out
        return made[(replaced, *flags)]

    return run
