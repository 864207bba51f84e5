"""Small codecs, images and shards to evaluate, and a function that runs the command in this process.

Torch is imported inside functions: tests that need no codec run without it.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from relic.arrays import Pixels
from relic.options import Parts
from relic.shards.manifest import Manifest, write_manifest
from relic.shards.npy import npy_header
from relic.shards.writer import ShardWriter
from tests.conftest import a_packing

if TYPE_CHECKING:
    from compressai.models import FactorizedPrior


class Outcome(NamedTuple):
    """What a run of the command left."""

    code: int
    stdout: str
    out: Path

    @property
    def summary(self) -> list[dict[str, Any]]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        result: list[dict[str, Any]] = json.loads((self.out / "metrics.json").read_text(), parse_constant=refuse)[
            "summary"
        ]
        return result

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.out / "per_image.csv").open() as file:
            return list(csv.DictReader(file))


def smooth_image(width: int, height: int, seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: Pixels = np.clip(smooth + rng.integers(-6, 7, (height, width, 1)), 0, 255).astype(np.uint8)
    return pixels


def codec(replaced: Parts = "none", gain: float = 8.0, seed: int = 0) -> "FactorizedPrior":
    """A random codec of 8 and 12 channels. `gain` scales its latents; up to 8 its density still covers them."""
    import torch

    from relic.codec.model import Architecture, build_model

    torch.manual_seed(seed)
    model = build_model(Architecture((8, 12), replaced)).eval()
    with torch.no_grad():
        model.g_a[6].weight.mul_(gain)
    return model


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Pixels]:
    return smooth_image


@pytest.fixture(scope="session")
def make_codec() -> "Callable[..., FactorizedPrior]":
    return codec


@pytest.fixture
def save_codec(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a model (by default a random one) as a checkpoint of relic."""
    from relic.codec.checkpoint import Checkpoint, save_checkpoint
    from relic.codec.model import Architecture

    def save(
        name: str = "codec.pt", replaced: Parts = "none", model: "FactorizedPrior | None" = None, **fields: Any
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        state = (model or codec(replaced)).state_dict()
        save_checkpoint(path, Checkpoint(Architecture((8, 12), replaced), state, **fields))
        return path

    return save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of different sizes, one of them in a subfolder, and a file that is not an image."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, (name, width, height) in enumerate(
        (("b.PNG", 33, 17), ("a.png", 1, 1), ("more/c.png", 300, 200), ("d.bmp", 176, 176))
    ):
        Image.fromarray(smooth_image(width, height, number)).save(folder / name)
    (folder / "README.md").write_text("images")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A val split of five crops of 176 x 176 in two shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    infos = []
    for shard, keys in enumerate((("one", "two", "three"), ("four", "five"))):
        with ShardWriter(folder / f"val-{shard:06d}.tar") as writer:
            for key in keys:
                pixels = smooth_image(176, 176, seed=len(key) + shard)
                writer.add(key, ".npy", npy_header(176, 176) + pixels.tobytes(), {"source": f"{key}.jpg"})
        assert writer.info is not None
        infos.append(writer.info)
    packing = a_packing(split="val", width=176, height=176, samples_per_shard=3, sources_sha256="")
    write_manifest(folder, Manifest(packing, tuple(infos), accepted=5, rejected=0))
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """A function that runs `evaluate/run.py` in this process on the CPU."""
    from evaluate.run import main

    def run_command(*argv: str | Path, out: str = "out") -> Outcome:
        code = main(["--workers", "1", *map(str, argv), "--out", str(tmp_path / out), "--device", "cpu"])
        return Outcome(code, capsys.readouterr().out, tmp_path / out)

    return run_command
