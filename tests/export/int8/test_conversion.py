"""INT8 parts: what is in the files, and that the measured cost is right."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export.codec import decode_file, encode_file
from export.onnx_parts import main
from relic.arrays import Floats
from relic.bitstream.container import OVERHEAD_BYTES, unpack
from relic.bitstream.tables import quantize
from relic.onnx.layout import CALIBRATION, FLOAT
from relic.onnx.sessions import load_tables, open_decoder, open_encoder, open_session
from tests.conftest import write_shards
from tests.export.conftest import MakeCheckpoint
from tests.export.int8.conftest import CROPS, SIDE, Crops, Export

pytestmark = pytest.mark.torch


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run_part(path: Path, values: Floats) -> Floats:
    session = open_session(path)
    result: Floats = session.run(None, {session.get_inputs()[0].name: values})[0]
    return result


def as_x(crop_HWC: npt.NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(crop_HWC.transpose(2, 0, 1)[None] / np.float32(255))


@pytest.mark.parametrize(
    ("part", "upsample", "operator", "axis"),
    [
        ("encoder", "subpixel", "Conv", 0),
        ("decoder", "subpixel", "Conv", 0),
        ("decoder", "deconv5", "ConvTranspose", 1),
    ],
)
def test_weights_are_int8_per_output_channel(
    part: str, upsample: str, operator: str, axis: int, export: Export
) -> None:
    written = export("all", "--upsample", upsample)
    model, original = (onnx.load(written / folder / f"{part}.onnx") for folder in ("", FLOAT))
    values, float_values = constants(model), constants(original)
    makers = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type == operator]
    assert len(layers) == 4
    for layer in layers:
        weights = makers[layer.input[1]]
        assert weights.op_type == "DequantizeLinear"
        assert [attribute.i for attribute in weights.attribute if attribute.name == "axis"] == [axis]
        levels, scale, zero = (values[name] for name in weights.input)
        real = float_values[weights.input[0].removesuffix("_quantized")]
        others = tuple(place for place in range(4) if place != axis)
        assert levels.dtype == np.int8 and not zero.any()
        np.testing.assert_allclose(scale, np.abs(real).max(others) / 127, rtol=0.01)
        shaped = scale.reshape([-1 if place == axis else 1 for place in range(4)])
        assert (np.abs(levels * shaped - real) <= 0.501 * shaped).all()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_activations_are_uint8_per_tensor_and_pixels_keep_their_steps(part: str, export: Export) -> None:
    model = onnx.load(export() / f"{part}.onnx")
    values = constants(model)
    scales = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[1]].shape == () and values[node.input[2]].dtype == np.uint8
            scales[node.input[1]] = values[node.input[1]].item(), values[node.input[2]].item()
    # The input and what each of four layers gives. DepthToSpace keeps the step.
    assert len(set(scales.values())) == 5
    images = ["x_scale"] if part == "encoder" else [name for name in scales if "Clip" in name or "x_hat" in name]
    assert {scales[image] for image in images} == {(np.float32(1 / 255).item(), 0)}


def test_files_are_of_the_opset_and_hold_nothing_but_8_bit_layers(export: Export) -> None:
    folder = export()
    for part, kinds in (("encoder", {"Conv"}), ("decoder", {"Conv", "DepthToSpace"})):
        model = onnx.load(folder / f"{part}.onnx")
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
        assert {node.op_type for node in model.graph.node} == kinds | {"QuantizeLinear", "DequantizeLinear"}
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(about["relic.precision"]) == "int8"
        float_about = {entry.key: entry.value for entry in onnx.load(folder / FLOAT / f"{part}.onnx").metadata_props}
        assert json.loads(float_about["relic.precision"]) == "float32"
        assert about["relic.tables"] == float_about["relic.tables"] == load_tables(folder).digest
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["precision"] == "int8" and manifest["parts"]["encoder"]["operators"]["QuantizeLinear"] == 5


def test_full_is_the_two_parts_in_a_row(export: Export, crops: Crops) -> None:
    folder = export()
    medians = load_tables(folder).medians[:, None, None]
    x = as_x(crops.val[0])
    y_hat = np.rint(run_part(folder / "encoder.onnx", x) - medians) + medians
    x_hat = run_part(folder / "decoder.onnx", y_hat.astype(np.float32))
    np.testing.assert_allclose(run_part(folder / "full.onnx", x), x_hat, rtol=0, atol=1e-4)


def test_calibration_inputs_are_train_crops_and_their_rounded_latents(export: Export, crops: Crops) -> None:
    folder = export()
    tables = load_tables(folder)
    xs = [np.load(folder / CALIBRATION / "encoder" / f"{number:03}.npy") for number in range(CROPS)]
    y_hats = [np.load(folder / CALIBRATION / "decoder" / f"{number:03}.npy") for number in range(CROPS)]
    assert len(list((folder / CALIBRATION).rglob("*.npy"))) == 2 * CROPS
    assert {(x.shape, x.dtype.str) for x in xs} == {((1, 3, SIDE, SIDE), "<f4")}
    train = {
        as_x(crop).tobytes()
        for crop in write_shards(crops.folder.parent / "same", "train", (60, 45), SIDE, seed=3).values()
    }
    assert len({x.tobytes() for x in xs}) == CROPS and {x.tobytes() for x in xs} <= train
    encoder = open_session(folder / FLOAT / "encoder.onnx")
    for x, y_hat in zip(xs[:10], y_hats[:10], strict=True):
        symbols = quantize(encoder.run(None, {"x": x})[0][0], tables)
        assert np.mean(symbols != np.rint(y_hat[0] - tables.medians[:, None, None])) < 0.001
    assert "(1, 12, 4, 4)" in (folder / CALIBRATION / "README.txt").read_text()
    for part in ("encoder", "decoder"):  # for RKNN-Toolkit2, which adds the folder of the list
        listed = (folder / CALIBRATION / f"{part}.txt").read_text().splitlines()
        assert listed == [f"{part}/{number:03}.npy" for number in range(CROPS)]


def coded(folder: Path, parts: Path, pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """PSNR in dB and bits per pixel of the symbols, by export/codec.py with the files in `parts`."""
    tables = load_tables(folder)
    data = encode_file(pixels, open_encoder(parts, tables), tables)
    decoded = decode_file(unpack(data, tables), open_decoder(parts, tables), tables)
    error = np.square((decoded.astype(float) - pixels) / 255).mean()
    return -10 * math.log10(error), 8 * (len(data) - OVERHEAD_BYTES) / (SIDE * SIDE)


def test_the_cost_told_is_what_the_device_codec_finds(export: Export, crops: Crops) -> None:
    folder = export()
    told = json.loads((folder / "export.json").read_text())["int8"]["quality"]
    assert told["val_crops"] == len(crops.val)
    for precision, parts in (("float32", folder / FLOAT), ("int8", folder)):
        psnr_db, bpp = np.mean([coded(folder, parts, crop) for crop in crops.val], axis=0)
        assert told[precision]["psnr_db"] == pytest.approx(psnr_db, abs=1e-3)
        assert told[precision]["bpp_real"] == pytest.approx(bpp, rel=1e-6)
        assert told[precision]["ms_ssim"] is None, "sides of 160 pixels or less have none"
    assert told["psnr_loss_db"] == pytest.approx(told["float32"]["psnr_db"] - told["int8"]["psnr_db"])
    assert told["int8"] != told["float32"]


def sqnr_db(real: list[Floats], given: list[Floats]) -> float:
    noise = sum(np.square(a.astype(float) - b).sum() for a, b in zip(real, given, strict=True))
    return 10 * math.log10(sum(np.square(a.astype(float)).sum() for a in real) / noise)


def test_the_noise_of_the_last_layers_is_what_comes_out(export: Export, crops: Crops) -> None:
    folder = export()
    layers = json.loads((folder / "export.json").read_text())["int8"]["layers"]
    told = {part: [one for one in layers if one["part"] == part] for part in ("encoder", "decoder")}
    assert [len(told[part]) for part in told] == [5, 5]
    medians = load_tables(folder).medians[:, None, None]
    y = [[run_part(folder / where / "encoder.onnx", as_x(crop)) for crop in crops.val] for where in (FLOAT, "")]
    y_hat = [np.rint(one - medians) + medians for one in y[0]]
    x_hat = [[run_part(folder / where / "decoder.onnx", one) for one in y_hat] for where in (FLOAT, "")]
    for part, values in (("encoder", y), ("decoder", x_hat)):
        assert told[part][-1]["sqnr_db"] == pytest.approx(sqnr_db(*values), abs=0.05)
    assert told["encoder"][0]["sqnr_db"] > 100, "pixels are stored in 8 bits to begin with"
    assert 15 < told["encoder"][-1]["sqnr_db"] < 60


def test_the_encoder_s_last_layer_can_stay_in_float(export: Export) -> None:
    kept, whole = (onnx.load(folder / "encoder.onnx") for folder in (export("all", "--int8_keep_last"), export()))
    last = next(node for node in kept.graph.node if node.output[0] == "y")
    assert last.op_type == "Conv" and last.input[1] in constants(kept)
    assert next(node for node in whole.graph.node if node.output[0] == "y").op_type == "DequantizeLinear"
    told = json.loads((export("all", "--int8_keep_last") / "export.json").read_text())["int8"]
    assert told["encoder_last_layer"] == "float32"
    assert len([one for one in told["layers"] if one["part"] == "encoder"]) == 4


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_ranges_depend_on_the_method(method: str, export: Export) -> None:
    def scale_after_the_first_layer(folder: Path) -> float:
        value: float = constants(onnx.load(folder / "encoder.onnx"))["/g_a/g_a.1/Relu_output_0_scale"].item()
        return value

    folder = export("all", "--calib_method", method)
    assert json.loads((folder / "export.json").read_text())["int8"]["calibration"]["method"] == method
    session = onnx.load(folder / FLOAT / "encoder.onnx")
    session.graph.output.extend(one for one in session.graph.value_info if one.name == "/g_a/g_a.1/Relu_output_0")
    watched = open_session(session.SerializeToString())
    inputs = sorted((folder / CALIBRATION / "encoder").iterdir())
    largest = max(watched.run(None, {"x": np.load(path)})[1].max() for path in inputs)
    if method == "minmax":
        assert scale_after_the_first_layer(folder) == pytest.approx(largest / 255, rel=1e-4)
        assert scale_after_the_first_layer(export()) <= largest / 255
    else:
        assert scale_after_the_first_layer(folder) < largest / 255


def test_gdn_itself_stays_in_float(export: Export) -> None:
    for part, layers in (("encoder", 4), ("decoder", 4)):
        graph = onnx.load(export("none") / f"{part}.onnx").graph
        makers = {node.output[0]: node.op_type for node in graph.node}
        roots = [node for node in graph.node if node.op_type == "Sqrt"]
        assert len(roots) == 3
        assert {makers[node.input[0]] for node in roots} == {"Conv"}
        convs = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
        assert sum(makers.get(node.input[1]) == "DequantizeLinear" for node in convs) == layers


@pytest.mark.parametrize("upsample", ["deconv5", "deconv6"])
def test_rewritten_decoders_are_quantized_too(upsample: str, export: Export) -> None:
    folder = export("all", "--upsample", upsample, "--dynamic")
    told = json.loads((folder / "export.json").read_text())["int8"]["quality"]
    assert abs(told["psnr_loss_db"]) < 1.5


@pytest.mark.parametrize("part", ["encoder", "decoder", "full"])
def test_a_single_part_lies_alone(part: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, crops: Crops) -> None:
    flags = ["--int8", "--calib_shards", str(crops.folder), "--calib_images", "100", "--input_size", str(SIDE)]
    out = tmp_path / "one.onnx"
    assert main(["--ckpt", str(make_checkpoint()), "--part", part, "--out", str(out), *flags]) == 0
    assert list(tmp_path.iterdir()) == [out]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}


def test_a_float_set_takes_an_int8_set_s_place_whole(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--ckpt", str(make_checkpoint()), "--part", "all", "--out", str(tmp_path / "set"), "--input_size", "32"]
    int8 = ["--int8", "--calib_shards", str(crops.folder), "--calib_images", "100"]
    assert main([*common, *int8]) == 0
    assert (tmp_path / "set" / CALIBRATION).is_dir() and (tmp_path / "set" / FLOAT).is_dir()
    assert main([*common, *int8]) == 0, "and an INT8 set another's"
    assert main(common) == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "decoder.onnx", "encoder.onnx", "export.json", "full.onnx", "tables.npz",
    ]  # fmt: skip

    (tmp_path / "own" / CALIBRATION).mkdir(parents=True)
    (tmp_path / "own" / CALIBRATION / "notes.txt").write_text("somebody's")
    capsys.readouterr()
    common[5] = str(tmp_path / "own")
    assert main([*common, *int8]) == 1
    error = capsys.readouterr().err
    assert "its calibration belongs to no export" in error
    assert [path.name for path in (tmp_path / "own").rglob("*")] == [CALIBRATION, "notes.txt"]
