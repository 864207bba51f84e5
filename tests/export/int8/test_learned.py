"""--calib_method learned: what the loss changed, and that it helps."""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from compressai.models import FactorizedPrior
from onnx import numpy_helper
from torch import Tensor

from export.int8.learned import Learned, learn
from export.int8.overrides import known_steps
from export.onnx_parts import main
from relic.bitstream.tables import dequantize, quantize
from relic.codec.checkpoint import load_checkpoint
from relic.codec.entropy import bits_per_pixel
from relic.codec.pixels import to_float
from relic.codec.pretrained import finished_model
from relic.onnx.layout import FLOAT
from relic.onnx.manifest import read_export_manifest
from relic.onnx.sessions import load_tables, open_session
from relic.options import Parts
from relic.quantization.fake import FakeQuantization, channel_steps, spread, stages_of
from relic.quantization.latent_grid import LatentGrid
from relic.quantization.observing import observe_ranges
from tests.export.conftest import MakeCheckpoint, as_batch, smooth_image
from tests.export.int8.conftest import SIDE, Crops, Export

LAMBDA = 0.001
GRID = LatentGrid(3, 128)
FLAGS = ("--calib_method", "learned", "--calib_lambda", str(LAMBDA))


@pytest.fixture(scope="module")
def model(make_checkpoint: MakeCheckpoint) -> FactorizedPrior:
    return finished_model(load_checkpoint(make_checkpoint("all")), "the checkpoint")


def images(first: int, count: int = 16) -> Tensor:
    return torch.from_numpy(np.stack([smooth_image(SIDE, SIDE, seed) for seed in range(first, first + count)]))


def learnt(model: FactorizedPrior, *, by_phase: bool) -> Learned:
    return learn(model, images(0), lambda_bpp=LAMBDA, by_phase=by_phase, grid=GRID)


@torch.no_grad()
def cost(model: FactorizedPrior, steps: dict[str, float], *, by_phase: bool) -> float:
    """Mean squared error plus LAMBDA x bits per pixel of other images, in INT8 with these steps of activations."""
    tried = copy.deepcopy(model)
    fake = FakeQuantization(tried, by_phase=by_phase, grid=GRID)
    fake.set_ranges({name: 255 * step for name, step in steps.items()})
    fake.attach()
    x = to_float(images(100))
    output = tried(x)
    bpp = bits_per_pixel(output["likelihoods"]["y"], SIDE * SIDE).mean()
    return float((output["x_hat"].clamp(0, 1) - x).square().mean() + LAMBDA * bpp)


@pytest.mark.parametrize("by_phase", [False, True])
def test_the_rate_distortion_cost_of_other_images_falls(model: FactorizedPrior, by_phase: bool) -> None:
    ranges = observe_ranges(model, to_float(images(0)).split(4))
    plain = cost(model, {name: largest / 255 for name, largest in ranges.items()}, by_phase=by_phase)
    found = learnt(model, by_phase=by_phase)
    assert cost(found.model, found.activation_steps, by_phase=by_phase) < 0.99 * plain


def test_weights_are_rounded_up_or_down_and_not_always_to_the_nearest(model: FactorizedPrior) -> None:
    before = copy.deepcopy(model.state_dict())
    found = learnt(model, by_phase=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    other_way = 0
    for transform in ("g_a", "g_s"):
        for own, changed in zip(stages_of(model, transform), stages_of(found.model, transform), strict=True):
            steps = spread(found.weight_steps[own.name], own.layer)
            levels, exact = changed.layer.weight / steps, own.layer.weight / steps
            torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
            inside = exact.abs() < 126.5
            assert ((levels - exact).abs()[inside] <= 1.001).all() and levels.abs().max() < 127.01
            other_way += int((levels.round() != exact.round())[inside].sum())
            ratio = found.weight_steps[own.name] / channel_steps(own.layer, by_phase=False)
            assert ((ratio > 0.5) & (ratio < 2)).all()
    assert other_way > 50


def test_the_learnt_steps_are_in_the_order_of_the_phases(model: FactorizedPrior, export: Export) -> None:
    found = learnt(model, by_phase=True)
    float_part = onnx.load(export("all", "--upsample", "subpixel") / FLOAT / "decoder.onnx")
    overrides = known_steps("decoder", float_part, found.known, (float(GRID.scale), 1 / 255))
    weights = {tensor.name: tensor for tensor in float_part.graph.initializer if tensor.name in overrides}
    assert len(weights) == 4
    for stage, (name, tensor) in zip(stages_of(model, "g_s"), weights.items(), strict=True):
        largest = np.abs(numpy_helper.to_array(tensor)).max((1, 2, 3)) / 127
        scales = np.array([entry["scale"] for entry in overrides[name]])
        assert len(scales) == 4 * stage.layer.out_channels and overrides[name][0]["axis"] == 0
        np.testing.assert_allclose(scales, largest, rtol=0.03)
        assert not np.allclose(scales, largest.reshape(4, -1).T.ravel(), rtol=0.03), "another order differs"


@pytest.mark.commands
def test_the_file_holds_what_was_learnt(export: Export) -> None:
    folder = export("all", *FLAGS, "--upsample", "deconv5")
    for part in ("encoder", "decoder"):
        values = {one.name: numpy_helper.to_array(one) for one in onnx.load(folder / f"{part}.onnx").graph.initializer}
        real = {
            one.name: numpy_helper.to_array(one) for one in onnx.load(folder / FLOAT / f"{part}.onnx").graph.initializer
        }
        for name in [name for name in values if name.endswith(".weight_quantized")]:
            plain = name.removesuffix("_quantized")
            side = 0 if part == "encoder" else 1
            exact = real[plain] / values[f"{plain}_scale"].reshape([-1 if each == side else 1 for each in range(4)])
            inside = np.abs(exact) < 126.5
            assert (np.abs(values[name] - exact)[inside] <= 1.001).all()
            assert (values[name] != np.rint(exact))[inside].any()


@pytest.mark.commands
@pytest.mark.parametrize(("replaced", "learned"), [("encoder", "encoder"), ("decoder", "decoder")])
def test_a_part_with_gdn_has_percentile_beside_one_that_learns(replaced: Parts, learned: str, export: Export) -> None:
    folder, plain = export(replaced, *FLAGS), export(replaced)
    for part in ("encoder", "decoder"):
        values, others = (
            {one.name: numpy_helper.to_array(one) for one in onnx.load(each / f"{part}.onnx").graph.initializer}
            for each in (folder, plain)
        )
        equal = all(np.array_equal(tensor, others[name]) for name, tensor in values.items())
        assert equal == (part != learned)


@pytest.mark.commands
def test_one_part_learns_beside_another_in_float(export: Export) -> None:
    folder = export("all", *FLAGS, "--int8_parts", "encoder")
    manifest = read_export_manifest(folder)
    assert {name: entry.precision for name, entry in manifest.parts.items()} == {
        "encoder": "int8", "decoder": "float32", "full": "int8",
    }  # fmt: skip
    real, beside = (onnx.load(folder / where / "decoder.onnx") for where in ("", FLOAT))
    assert real.graph == beside.graph
    told = json.loads((folder / "export.json").read_text())["int8"]
    assert {one["part"] for one in told["layers"]} == {"encoder"} and told["parts"] == "encoder"
    assert told["quality"]["float32"] != told["quality"]["int8"]
    x = as_batch(smooth_image(SIDE, SIDE, 7))
    tables = load_tables(folder)
    y = open_session(folder / "encoder.onnx").run(None, {"x": x})[0]
    y_hat = dequantize(quantize(y[0], tables), tables)[None]
    x_hat = open_session(folder / FLOAT / "decoder.onnx").run(None, {"y_hat": y_hat})[0]
    np.testing.assert_allclose(open_session(folder / "full.onnx").run(None, {"x": x})[0], x_hat, atol=1e-4)


def test_codecs_that_cannot_learn_are_refused(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--part", "all", "--out", str(tmp_path / "set"), "--input_size", str(SIDE), "--int8"]
    common += ["--calib_shards", str(crops.folder), "--calib_method", "learned"]
    other_half = ("--calib_lambda", "0.01", "--int8_parts", "decoder")
    assert main(["--ckpt", str(make_checkpoint("encoder")), *common, *other_half]) == 1
    assert "--calib_method learned: --int8_parts decoder has GDN" in capsys.readouterr().err
    assert main(["--ckpt", str(make_checkpoint("all")), *common]) == 1
    assert "give --calib_lambda" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_on_a_coarse_grid_the_latents_stay_within_a_small_part_of_a_symbol(model: FactorizedPrior) -> None:
    """A step of the grid is a whole symbol there."""
    found = learn(model, images(0), lambda_bpp=LAMBDA, by_phase=False, grid=LatentGrid(1, 128))
    before, after = (list(stages_of(each, "g_a"))[-1].layer.bias for each in (model, found.model))
    assert before is not None and after is not None
    assert 0 < (after - before).abs().max() < 0.1


@torch.no_grad()
def test_the_rate_is_that_of_latents_which_were_not_moved_to_the_grid(model: FactorizedPrior) -> None:
    """On a grid of whole symbols they are moved by up to half a symbol. The entropy bottleneck knows nothing of it."""
    spied = copy.deepcopy(model)
    seen: list[Tensor] = []
    spied.entropy_bottleneck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.enable_grad():
        learn(spied, images(0), lambda_bpp=LAMBDA, by_phase=False, grid=LatentGrid(1, 128))
    wanted = model.g_a(to_float(images(0))).mean((0, 2, 3))
    torch.testing.assert_close(torch.cat(seen[:4]).mean((0, 2, 3)), wanted, rtol=0, atol=0.1)
