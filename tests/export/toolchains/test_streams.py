"""A stream that one runtime wrote decodes in all others, to the symbols that were sent.

The tables are static, so that no runtime computes a probability. Runtimes round otherwise, and send other symbols.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.crops import evenly_spread, read_crops
from export.exchange_streams import main
from export.toolchains.registry import TOOLCHAINS
from relic.options import ToolchainName
from relic.shards.shard_set import open_shard_set
from tests.export.toolchains.conftest import export_int8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIDE, CROPS = 96, 24


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_streams_decode_in_both_directions(
    name: ToolchainName, installed: Callable[[ToolchainName], None], photographs: Path, tmp_path: Path
) -> None:
    installed(name)
    checkpoint = photographs / "swapped" / "last.pt"
    folder = export_int8(checkpoint, photographs / "shards", tmp_path / "export", "subpixel", SIDE)
    shards = open_shard_set(photographs / "shards", "val")
    (tmp_path / "images").mkdir()
    for number, crop in enumerate(read_crops(shards, evenly_spread(shards, CROPS))):
        Image.fromarray(crop).save(tmp_path / "images" / f"{number:02}.png")
    argv = ["--export", str(folder), "--images", str(tmp_path / "images"), "--ckpt", str(checkpoint)]
    assert main([*argv, "--toolchains", name, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["runtimes"] == ["torch", "float32", "int8", name] and found["images"] == CROPS
    assert len(found["pairs"]) == 16
    assert not any(pair["other_symbols"] for pair in found["pairs"])
    quality = [pair["psnr_db"] for pair in found["pairs"]]
    assert np.ptp(quality) < 1 and min(quality) > 20  # a wrong symbol would be seen in the image
