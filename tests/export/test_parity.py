"""The check fails for a wrong file, and only for a wrong one."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.check_inputs import CheckInputs, draw_latents, make_check_inputs
from export.onnx_files import InputSize, export_part
from export.parity import check_parity
from export.parts import Part
from export.source import ExportSource, load_source
from relic.errors import InputError
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint

SIZE = InputSize(1, HEIGHT, WIDTH, dynamic=False)


@pytest.fixture
def source(make_checkpoint: MakeCheckpoint) -> ExportSource:
    return load_source(str(make_checkpoint("all")), None)


@pytest.fixture
def inputs(source: ExportSource) -> CheckInputs:
    return make_check_inputs(SIZE, source.tables, None)


def shift(model: onnx.ModelProto, name: str, by: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), name))


@pytest.mark.parametrize(
    ("part", "name", "by"),
    [
        ("encoder", "g_a.6.bias", 0.01),
        ("encoder", "g_a.0.weight", 0.001),
        ("encoder", "g_a.6.bias", float("nan")),
        ("decoder", "g_s.6.bias", 0.001),
        ("full", "medians", 0.01),
        ("full", "g_a.6.bias", 0.01),
        ("full", "g_s.6.bias", 0.001),
    ],
)
def test_a_wrong_file_fails(part: Part, name: str, by: float, source: ExportSource, inputs: CheckInputs) -> None:
    model = export_part(part, source, SIZE, 13, "deconv5")
    check_parity(part, model, source, inputs)
    shift(model, name, by)
    with pytest.raises(InputError, match=f"{part}: onnxruntime .* differs from torch"):
        check_parity(part, model, source, inputs)


def test_a_latent_on_the_edge_may_fall_either_way(source: ExportSource, inputs: CheckInputs) -> None:
    with torch.no_grad():
        last = source.model.g_a[6]
        last.weight.zero_()
        last.bias.copy_(torch.from_numpy(source.tables.medians.copy()) + 0.5)
    model = export_part("full", source, SIZE, 13, "deconv5")
    shift(model, "g_a.6.bias", 1e-6)  # as another order of summation might
    parity = check_parity("full", model, source, inputs)
    assert parity.changed_symbols > 0
    assert parity.error < 1e-4


def test_drawn_latents_are_what_the_tables_code(source: ExportSource) -> None:
    tables = source.tables
    y_hat = draw_latents(tables, (2, 20, 30), np.random.default_rng(0))
    symbols = y_hat - tables.medians[:, None, None]
    assert y_hat.shape == (2, tables.num_channels, 20, 30)
    np.testing.assert_allclose(symbols, np.rint(symbols), atol=1e-5)
    low = tables.offset[:, None, None]
    assert (np.rint(symbols) >= low).all()
    assert (np.rint(symbols) < low + tables.cdf_length[:, None, None] - 2).all()
    assert symbols.std() > 1
