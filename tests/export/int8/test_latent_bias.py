"""The INT8 parts have their latents on the grid."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export.int8.latent_bias import move_first_bias
from relic.bitstream.tables import dequantize, quantize
from relic.onnx.layout import FLOAT
from relic.onnx.sessions import load_tables, open_session
from relic.quantization.latent_grid import LatentGrid
from tests.export.conftest import MakeExport
from tests.export.int8.conftest import SIDE, Crops, Export

pytestmark = pytest.mark.torch


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def without_last_rounding(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder without the last QuantizeLinear and DequantizeLinear."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(encoder)
    makers = {node.output[0]: node for node in stripped.graph.node}
    last = makers[stripped.graph.output[0].name]
    before = makers[last.input[0]]
    makers[before.input[0]].output[0] = "y"
    for node in (last, before):
        stripped.graph.node.remove(node)
    return stripped


def test_the_symbols_are_those_of_latents_that_are_not_rounded(export: Export, crops: Crops) -> None:
    folder = export()
    tables = load_tables(folder)
    encoder = onnx.load(folder / "encoder.onnx")
    values = constants(encoder)
    (steps,) = {round(1 / float(values["y_scale"]))}
    assert steps % 2 == 1 and float(values["y_scale"]) == np.float32(1 / steps)
    offsets = np.rint(tables.medians * steps) / steps - tables.medians
    rounded, exact = (open_session(one.SerializeToString()) for one in (encoder, without_last_rounding(encoder)))
    for crop in crops.val:
        x = np.ascontiguousarray(crop.transpose(2, 0, 1)[None] / np.float32(255))
        symbols, y = quantize(rounded.run(None, {"x": x})[0][0], tables), exact.run(None, {"x": x})[0][0]
        wanted = np.rint(y - offsets[:, None, None] - tables.medians[:, None, None])
        assert np.mean(symbols == wanted) > 0.9999
        assert len(np.unique(symbols)) > 5


def test_the_decoder_s_input_levels_are_the_symbols(export: Export) -> None:
    folder = export()
    tables = load_tables(folder)
    decoder = onnx.load(folder / "decoder.onnx")
    steps, zero_point = (float(constants(decoder)[f"y_hat_{name}"]) for name in ("scale", "zero_point"))
    first = next(node for node in decoder.graph.node if node.input[0] == "y_hat")
    only = onnx.helper.make_model(
        onnx.helper.make_graph(
            [first],
            "input",
            list(decoder.graph.input),
            [onnx.helper.make_tensor_value_info(first.output[0], onnx.TensorProto.UINT8, None)],
            [tensor for tensor in decoder.graph.initializer if tensor.name in first.input],
        ),
        opset_imports=decoder.opset_import,
        ir_version=decoder.ir_version,
    )
    side = SIDE // tables.stride
    symbols = np.random.default_rng(0).integers(-6, 7, (tables.num_channels, side, side)).astype(np.int32)
    levels = open_session(only.SerializeToString()).run(None, {"y_hat": dequantize(symbols, tables)[None]})[0][0]
    own = np.rint(tables.medians / steps).astype(int)[:, None, None]
    np.testing.assert_array_equal(levels, symbols * round(1 / steps) + own + int(zero_point))


def test_the_first_bias_takes_back_what_the_grid_adds(export: Export) -> None:
    """Away from the borders, where outputs have no padding. With subpixel every phase has its own bias."""
    folder = export("all", "--upsample", "subpixel")
    tables, decoder = load_tables(folder), onnx.load(folder / FLOAT / "decoder.onnx")
    side = SIDE // tables.stride
    grid = LatentGrid(1, 128)
    y_hat = dequantize(np.zeros((tables.num_channels, side, side), np.int32), tables)[None]
    on_grid = (y_hat + grid.offsets(tables.medians)[:, None, None]).astype(np.float32)
    first = next(node.output[0] for node in decoder.graph.node if node.op_type == "Conv")
    for model in (decoder, moved := move_first_bias(decoder, grid, tables.medians)):
        model.graph.output.append(next(value for value in model.graph.value_info if value.name == first))
    wanted = open_session(decoder.SerializeToString()).run([first], {"y_hat": y_hat})[0]
    found, left_out = (
        open_session(model.SerializeToString()).run([first], {"y_hat": on_grid})[0] for model in (moved, decoder)
    )
    inside = np.s_[:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(found[inside], wanted[inside], atol=1e-5)
    assert np.abs(left_out[inside] - wanted[inside]).max() > 1e-3


def test_the_float_parts_are_those_of_an_export_in_float(export: Export, make_export: MakeExport) -> None:
    for part in ("encoder", "decoder"):
        beside, alone = (constants(onnx.load(path / f"{part}.onnx")) for path in (export() / FLOAT, make_export()))
        assert beside.keys() == alone.keys()
        for name, values in beside.items():
            np.testing.assert_array_equal(values, alone[name])
