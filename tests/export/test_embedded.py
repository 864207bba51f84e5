"""The codec that ships, with every mix of GDN and ReLU, at the size it is used at."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from export.onnx_parts import main
from relic.bitstream.tables import Tables
from relic.codec.checkpoint import Checkpoint, save_checkpoint
from relic.codec.model import replace_gdn_with_relu
from relic.codec.pretrained import EMBEDDED_FILE, finished_model, read_codec
from relic.onnx.sessions import open_session
from relic.options import Parts
from tests.export.conftest import as_batch, smooth_image

SIDE = 224


@pytest.mark.parametrize("replaced", get_args(Parts))
def test_every_part_agrees_with_torch_and_full_with_its_halves(replaced: Parts, tmp_path: Path) -> None:
    codec = read_codec(EMBEDDED_FILE, flag="--ckpt")
    model, architecture = finished_model(codec, "--ckpt"), codec.architecture.with_relu_in(replaced)
    replace_gdn_with_relu(model, replaced)
    assert architecture.replaced == replaced
    save_checkpoint(tmp_path / "c.pt", Checkpoint(architecture, model.state_dict(), loss_type="rd"))
    out = tmp_path / "out"
    assert main(["--ckpt", str(tmp_path / "c.pt"), "--part", "all", "--out", str(out)]) == 0
    parts = json.loads((out / "export.json").read_text())["parts"]
    assert {name: part["parity"]["error"] <= 1e-4 for name, part in parts.items()} == dict.fromkeys(parts, True)

    encoder, decoder, full = (open_session(out / f"{part}.onnx") for part in ("encoder", "decoder", "full"))
    medians = Tables.load(out / "tables.npz").medians[:, None, None]
    for seed in range(2):
        x = as_batch(smooth_image(SIDE, SIDE, seed))
        (y,) = encoder.run(None, {"x": x})
        (x_hat,) = decoder.run(None, {"y_hat": np.rint(y - medians) + medians})
        np.testing.assert_allclose(full.run(None, {"x": x})[0], x_hat, rtol=0, atol=1e-4)
