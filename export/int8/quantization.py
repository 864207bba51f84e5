"""Quantize a float part to INT8 by onnxruntime: static ranges, QDQ format.

Activations are uint8 per tensor. Weights are int8 per output channel: axis 0 of a convolution, axis 1 of a transposed
one, whose weights are stored [in, out, k, k]. Biases are int32. GDN's own operations have no 8-bit form and stay in
float.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.int8.bias_correction import correct_biases
from export.int8.inputs import Calibration, load, range_of
from export.int8.latent_bias import move_first_bias, move_last_bias
from export.int8.overrides import KnownSteps, Overrides, image_steps, known_step, known_steps, prefix_of
from export.parts import INPUT_NAMES, OUTPUT_NAMES, Part
from relic.errors import InputError
from relic.options import Method
from relic.quantization.latent_grid import LatentGrid, choose_grid

_OPERATORS = ["Conv", "ConvTranspose", "Relu", "Clip"]
_PERCENTILE = 99.999
_METHODS = {
    "minmax": (CalibrationMethod.MinMax, {}),
    # Not symmetric about 0, which is onnxruntime's default: after a ReLU that would waste half of the levels.
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": _PERCENTILE}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512}),
}
_LEVELS = 255
_PIXEL = float(np.float32(1 / _LEVELS))
_CHUNK = 4
"""Inputs whose activations are in memory at once. At 1280x720 and 192 channels one input takes 0.8 GB."""


def quantize_part(
    part: Part,
    model: onnx.ModelProto,
    calibration: Calibration,
    medians: NDArray[np.float32],
    method: Method | KnownSteps,
    *,
    keep_last: bool,
) -> onnx.ModelProto:
    """The part with its convolutions in INT8. Opset, inputs and outputs stay the same.

    `method` chooses the ranges of activations from the calibration's inputs, or is the steps themselves. There are two
    exceptions. Images have steps of 1/255, those of 8-bit pixels. Latents have the grid of
    `relic.quantization.latent_grid`, or the range of all their values if no grid covers these: large latents are coded
    too, so none may be cut off. With `keep_last` the encoder's last layer and the latents stay in float. `medians` are
    those of the M channels, (M,).
    """
    inputs = calibration.encoder if part == "encoder" else calibration.decoder
    last = [_last_conv(model)] if keep_last and part == "encoder" else []
    known, ready = image_steps(model), _copy(model)
    latents = None
    if not last:
        if grid := grid_of(calibration):
            latents = grid.scale, grid.zero_point
            ready = (move_last_bias if part == "encoder" else move_first_bias)(model, grid, medians)
        else:
            latents = _latent_range(part, *range_of(calibration.decoder))
        known |= {_latents_of(part): [known_step(*latents, np.uint8)]}
    found = None if isinstance(method, KnownSteps) else _calibrate(part, model, inputs, method)
    steps = method if isinstance(method, KnownSteps) else _found_steps(part, model, found)
    if steps is not None:
        ends = _PIXEL, None if latents is None else float(latents[0])
        known |= known_steps(part, model, steps, ends if part == "encoder" else ends[::-1])
    if found is None:
        # onnxruntime asks for a range of every activation. What is known comes before it. The other activations are
        # merged into the ReLU after them.
        activations = [name for name, entries in known.items() if "axis" not in entries[0]]
        activations += [node.output[0] for node in model.graph.node if node.op_type in _OPERATORS]
        found = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(activations, (np.float32(0), np.float32(1))))
    quantized = _quantize(ready, found, known, excluded=[*_gdn_nodes(model), *last])
    if not isinstance(method, KnownSteps):  # learned and trained biases fit the rounded weights
        correct_biases(model, quantized, inputs)
    del quantized.graph.value_info[:]  # onnxruntime keeps entries of tensors that it removed
    del quantized.metadata_props[:]  # they describe the float file
    quantized = onnx.shape_inference.infer_shapes(quantized, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(quantized, full_check=True)
    opsets = [(entry.domain, entry.version) for entry in quantized.opset_import]
    if opsets != [(entry.domain, entry.version) for entry in model.opset_import]:
        raise InputError(f"--int8: onnxruntime changed the opset to {opsets}; choose another --opset")
    return quantized


def _quantize(model: onnx.ModelProto, ranges: TensorsData, known: Overrides, *, excluded: list[str]) -> onnx.ModelProto:
    """By onnxruntime's quantizer. `known` comes before `ranges`. The nodes named in `excluded` stay in float."""
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=excluded,
        op_types_to_quantize=_OPERATORS,
        extra_options={"TensorQuantOverrides": known},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # the quantizer appends its nodes at the end
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def grid_of(calibration: Calibration) -> LatentGrid | None:
    """The grid of the latents; None if no grid covers them."""
    return choose_grid(*range_of(calibration.decoder))


def join_parts(encoder: onnx.ModelProto, decoder: onnx.ModelProto, medians: NDArray[Any]) -> onnx.ModelProto:
    """`full` in one file: the encoder, rounding about the medians (M,), and the decoder."""
    (y,), (y_hat,) = encoder.graph.output, decoder.graph.input
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("latents", "levels")]
    for value in values:
        value.type.tensor_type.shape.CopyFrom(y.type.tensor_type.shape)
    rounding = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Sub", ["latents", "medians"], ["centred"], "/Sub"),
            onnx.helper.make_node("Round", ["centred"], ["rounded"], "/Round"),
            onnx.helper.make_node("Add", ["rounded", "medians"], ["levels"], "/Add"),
        ],
        "rounding",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(medians.astype(np.float32).reshape(1, -1, 1, 1), "medians")],
    )
    middle = onnx.helper.make_model(rounding, opset_imports=encoder.opset_import, ir_version=encoder.ir_version)
    halves = onnx.compose.merge_models(encoder, middle, [(y.name, "latents")])
    full = onnx.compose.merge_models(halves, decoder, [("levels", y_hat.name)])
    onnx.checker.check_model(full, full_check=True)
    return full


class _CalibrationReader(CalibrationDataReader):
    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self._inputs: Iterator[dict[str, NDArray[Any]]] = ({name: load(file)} for file in files)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._inputs, None)


def _calibrate(part: Part, model: onnx.ModelProto, inputs: Sequence[Path], method: Method) -> TensorsData:
    kind, options = _METHODS[method]
    with tempfile.TemporaryDirectory(prefix="relic-int8-") as folder, contextlib.redirect_stdout(io.StringIO()):
        onnx.save(model, Path(folder) / "float.onnx")
        calibrator = create_calibrator(
            Path(folder) / "float.onnx",
            _OPERATORS,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        for first in range(0, len(inputs), _CHUNK):
            calibrator.collect_data(_CalibrationReader(INPUT_NAMES[part], inputs[first : first + _CHUNK]))
        return calibrator.compute_data()


def _found_steps(part: Part, model: onnx.ModelProto, found: TensorsData) -> KnownSteps | None:
    """The steps of the ReLUs, as onnxruntime's quantizer makes them of ranges from 0; None for a part with GDN."""
    if _gdn_nodes(model):
        return None
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    steps = [float(np.float32(found[name].range_value[1]) / np.float32(_LEVELS)) for name in outputs]
    return KnownSteps({f"{prefix_of(part)}{name}": step or 1.0 for name, step in zip(outputs, steps, strict=True)}, {})


def _latent_range(part: Part, low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point for the range of y_hat, or of y, which differs from y_hat by up to 1/2, and for 0."""
    margin = 0.5 if part == "encoder" else 0
    low, high = min(low - margin, 0.0), max(high + margin, 0.0)
    scale = (high - low or 1.0) / _LEVELS
    return np.float32(scale), round(-low / scale)


def _latents_of(part: Part) -> str:
    return OUTPUT_NAMES[part] if part == "encoder" else INPUT_NAMES[part]


def _gdn_nodes(model: onnx.ModelProto) -> list[str]:
    """The 1x1 convolutions of GDN: the only ones whose input is a square."""
    squares = {node.output[0] for node in model.graph.node if node.op_type == "Mul" and len(set(node.input)) == 1}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[0] in squares]


def _last_conv(model: onnx.ModelProto) -> str:
    result: str = next(node.name for node in reversed(model.graph.node) if node.op_type == "Conv")
    return result


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
