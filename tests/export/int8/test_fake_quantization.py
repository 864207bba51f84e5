"""Fake quantization in torch against onnxruntime on the exported INT8 files."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from export.onnx_parts import main
from relic.bitstream.tables import dequantize, quantize
from relic.codec.checkpoint import load_checkpoint, save_checkpoint
from relic.codec.pretrained import finished_model
from relic.onnx.sessions import load_tables, open_session
from relic.options import Upsample
from relic.quantization.fake import FakeQuantization
from relic.quantization.latent_grid import LatentGrid
from relic.quantization.observing import observe_ranges
from tests.export.conftest import MakeCheckpoint
from tests.export.int8.conftest import SIDE, Crops


def scales(path: Path) -> dict[str, float]:
    """The scale and zero point of each quantized activation, by name, in the order of the graph."""
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[1:]]
    return {name: float(values[name]) for name in names}


def faked(checkpoint: Path, folder: Path, upsample: Upsample) -> FakeQuantization:
    """The checkpoint's model with the ranges of the files in `folder`."""
    model = finished_model(load_checkpoint(checkpoint), "the checkpoint")
    encoder, decoder = (scales(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
    grid = LatentGrid(round(1 / encoder["y_scale"]), round(encoder["y_zero_point"]))
    fake = FakeQuantization(model, by_phase=upsample.startswith("subpixel"), grid=grid)
    steps = [
        value for part in (encoder, decoder) for name, value in part.items() if name.endswith("Relu_output_0_scale")
    ]
    fake.set_ranges({name: step * 255 for name, step in zip(fake.log_steps, steps, strict=True)})
    fake.attach()
    return fake


def export_trained(folder: Path, crops: Crops, make_checkpoint: MakeCheckpoint, upsample: Upsample) -> Path:
    """An INT8 export of the checkpoint as one of --qat, whose weights and biases are written as they are."""
    checkpoint = load_checkpoint(make_checkpoint("all"))
    images = torch.from_numpy(np.stack(crops.val)).permute(0, 3, 1, 2) / 255
    ranges = observe_ranges(finished_model(checkpoint, "the checkpoint"), [images])
    steps = {name: largest / 255 for name, largest in ranges.items()}
    trained = dataclasses.replace(checkpoint, quantization={"upsample": upsample, "activation_steps": steps})
    save_checkpoint(folder / "trained.pt", trained)
    given = ["--ckpt", str(folder / "trained.pt"), "--part", "all", "--out", str(folder / "set"), "--int8"]
    given += ["--input_size", str(SIDE), "--calib_shards", str(crops.folder), "--calib_images", "100"]
    assert main([*given, "--upsample", upsample]) == 0
    return folder / "set"


def run(part: Path, values: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(part)
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: values})[0]
    return found


@torch.no_grad()
@pytest.mark.parametrize("upsample", ["deconv5", "deconv6", "subpixel", "subpixel-deconv2"])
def test_torch_gives_the_symbols_and_pixels_of_onnxruntime(
    upsample: Upsample, crops: Crops, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = export_trained(tmp_path, crops, make_checkpoint, upsample)
    fake, tables = faked(make_checkpoint("all"), folder, upsample), load_tables(folder)
    equal, near, float_equal = [], [], []
    for crop in crops.val:
        x = np.ascontiguousarray(crop.transpose(2, 0, 1)[None] / np.float32(255))
        wanted = quantize(run(folder / "encoder.onnx", x)[0], tables)
        equal.append(quantize(fake.model.g_a(torch.from_numpy(x)).numpy()[0], tables) == wanted)
        float_equal.append(quantize(run(folder / "float" / "encoder.onnx", x)[0], tables) == wanted)
        y_hat = dequantize(wanted, tables)[None]
        levels = (
            np.rint(255 * each)
            for each in (run(folder / "decoder.onnx", y_hat), fake.model.g_s(torch.from_numpy(y_hat)).numpy())
        )
        near.append(np.abs(np.subtract(*levels)) <= 1)
    assert np.mean(equal) >= 0.999 and np.mean(near) >= 0.999
    assert np.mean(float_equal) < 0.99, "the float encoder differs"


def test_the_model_gets_its_own_functions_back(make_checkpoint: MakeCheckpoint, crops: Crops) -> None:
    model = finished_model(load_checkpoint(make_checkpoint("all")), "the checkpoint")
    x = torch.tensor(crops.val[0]).permute(2, 0, 1)[None] / 255
    before = model(x)["x_hat"]
    names = list(model.state_dict())
    fake = FakeQuantization(model, by_phase=False)
    fake.set_ranges(dict.fromkeys(fake.log_steps, 4.0))
    fake.attach()
    assert list(model.state_dict()) == names
    assert not torch.equal(model(x)["x_hat"], before)
    fake.detach()
    assert torch.equal(model(x)["x_hat"], before)


def test_a_transform_with_gdn_stays_in_float(make_checkpoint: MakeCheckpoint) -> None:
    model = finished_model(load_checkpoint(make_checkpoint("encoder")), "the checkpoint")
    fake = FakeQuantization(model, by_phase=False)
    assert list(fake.log_steps) == ["g_a.1", "g_a.3", "g_a.5"]
    fake.attach()
    assert not any("forward" in module.__dict__ for module in model.g_s)


def test_the_gradient_of_a_step_is_that_of_lsq(make_checkpoint: MakeCheckpoint) -> None:
    """Inside the range: the rounding error, in steps. Above: 255. Below: 0 (arXiv 1902.08153, equation 3)."""
    model = finished_model(load_checkpoint(make_checkpoint("all")), "the checkpoint")
    fake = FakeQuantization(model, by_phase=False)
    fake.set_ranges({"g_a.1": 25.5})
    fake.attach()
    values = torch.tensor([[-3.0, 0.04, 0.16, 7.77, 25.49, 30.0]], requires_grad=True)
    model.g_a[1](values).sum().backward()
    levels = values.detach() / 0.1
    by_value = torch.where(values < 0, 0, torch.where(levels > 255, 255, levels.round() - levels))
    found = fake.log_steps["g_a.1"].grad
    assert found is not None
    torch.testing.assert_close(found, 0.1 * by_value.sum().view(1), rtol=1e-3, atol=1e-4)
    assert values.grad is not None and values.grad.tolist() == [[0, 1, 1, 1, 1, 0]]
