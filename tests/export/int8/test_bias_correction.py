"""Rounded weights change no output on average."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from export.parts import Part
from relic.onnx.layout import FLOAT
from relic.options import Upsample
from tests.export.int8.conftest import Export


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("part", "upsample"), [("encoder", "subpixel"), ("decoder", "subpixel"), ("decoder", "deconv5")]
)
def test_the_mean_of_the_first_layers_outputs_stays(part: Part, upsample: Upsample, export: Export) -> None:
    """On the calibration's inputs, which are the first layer's; computed by torch from the constants of the files."""
    folder = export("all", "--upsample", upsample)
    real, int8 = (onnx.load(path / f"{part}.onnx") for path in (folder / FLOAT, folder))
    layer = next(node for node in real.graph.node if node.op_type in ("Conv", "ConvTranspose"))
    weights, bias = (torch.from_numpy(constants(real)[name].copy()).double() for name in layer.input[1:])
    found = constants(int8)
    transposed = layer.op_type == "ConvTranspose"
    levels, steps, biases, units = (
        torch.from_numpy(found[f"{name}{end}"].copy()).double()
        for name in layer.input[1:]
        for end in ("_quantized", "_scale" if name == layer.input[1] else "_quantized_scale")
    )
    rounded = levels * steps.view([-1 if side == int(transposed) else 1 for side in range(4)])
    run = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    inside = slice(3, -4) if transposed else slice(None)  # outputs with all taps, as many of each phase
    stride = next(each.ints for each in layer.attribute if each.name == "strides")[0]
    files = sorted((folder / "calibration" / part).glob("*.npy"))
    inputs = [torch.from_numpy(np.load(file)).double() for file in files]
    step = float(found[f"{layer.input[0]}_scale"])
    on_grid = [(x / step).round() * step for x in inputs]

    def mean(images: list[torch.Tensor], kernels: torch.Tensor) -> torch.Tensor:
        outputs = [run(x, kernels, stride=stride)[:, :, inside, inside] for x in images]
        return torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)

    wanted = mean(inputs, weights) + bias
    given = mean(on_grid, rounded) + biases * units
    uncorrected = mean(on_grid, rounded) - mean(on_grid, weights)
    assert (given - wanted).square().mean() < 0.4 * uncorrected.square().mean()
