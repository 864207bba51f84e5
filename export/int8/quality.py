"""Measure coded crops (PSNR, MS-SSIM, real rate), and the noise that INT8 adds to each activation.

Shapes: x_1CHW and x_hat_1CHW float32 in [0, 1]; y_1Mhw, y_hat_1Mhw float32.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch

from export.int8.overrides import reorders
from export.parts import INPUT_NAMES, Part
from relic.arrays import Floats
from relic.bitstream.container import OVERHEAD_BYTES, pack
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.codec.metrics import score_coded
from relic.codec.scores import MeanScore, Score, mean_score
from relic.onnx.sessions import open_session

_TINY = 1e-30
"""Used in place of an energy of 0, which would make the ratio infinite: JSON has no infinity."""
_AFTER = "_DequantizeLinear_Output"
"""onnxruntime adds this to the name of an activation for its value after rounding, except at the file's output."""


class LayerNoise(NamedTuple):
    """Signal-to-quantization-noise ratio of one activation over all crops.

    The noise is that of the activation's own rounding and of all roundings before it.
    """

    part: Part
    node: str
    """The node of the float file that computes the activation."""
    sqnr_db: float
    """10 log10(energy of the float activation / energy of the difference)."""


def measure_quality(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, tables: Tables, images: Iterable[Floats]
) -> MeanScore:
    """Code every x (1, 3, H, W) to real bytes with these two parts, and score the reconstructions."""
    encoding, decoding = (open_session(part.SerializeToString()) for part in (encoder, decoder))
    scores = []
    for x_1CHW in images:
        (y_1Mhw,) = encoding.run(None, {INPUT_NAMES["encoder"]: x_1CHW})
        symbols = quantize(y_1Mhw[0], tables)
        (x_hat_1CHW,) = decoding.run(None, {INPUT_NAMES["decoder"]: dequantize(symbols, tables)[None]})
        scores.append(score_symbols(x_1CHW, x_hat_1CHW, symbols, tables))
    return mean_score(scores)


def score_symbols(x_1CHW: Floats, x_hat_1CHW: Floats, symbols: npt.NDArray[np.int32], tables: Tables) -> Score:
    """PSNR and MS-SSIM of 8-bit pixels, and the rate of the symbols' real bytes."""
    height, width = x_1CHW.shape[2:]
    payload_bytes = len(pack(symbols, width, height, tables)) - OVERHEAD_BYTES
    return score_coded(torch.from_numpy(x_1CHW), torch.from_numpy(x_hat_1CHW), payload_bytes)


def layer_noise(
    part: Part, model: onnx.ModelProto, int8: onnx.ModelProto, inputs: Iterable[Floats]
) -> list[LayerNoise]:
    """The noise of every activation that `int8` holds in 8 bits, in the graph's order, the input first.

    What is only another order of an activation has the same noise, and is left out.
    """
    computing = {node.output[0]: node.name for node in model.graph.node if not reorders(node)}
    makers = {model.graph.input[0].name: "input"} | computing
    rounded = _rounded_activations(int8)
    names = [name for name in makers if name in rounded]
    in_float, in_int8 = WithActivations(model, names), WithActivations(int8, [rounded[name] for name in names])
    energies = np.zeros((len(names), 2))
    for values in inputs:
        exact, given = in_float(values), in_int8(values)
        for place, name in enumerate(names):
            energies[place] += _energy(exact[name]), _energy(exact[name] - given[rounded[name]])
    return [
        LayerNoise(part, makers[name], 10 * math.log10(max(signal, _TINY) / max(noise, _TINY)))
        for name, (signal, noise) in zip(names, energies.tolist(), strict=True)
    ]


def _rounded_activations(int8: onnx.ModelProto) -> dict[str, str]:
    """Name in the float file -> name in `int8` of the same activation after rounding. Weights are left out."""
    quantized = {node.output[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    return {
        node.output[0].removesuffix(_AFTER): node.output[0]
        for node in int8.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }


class WithActivations:
    """A model that returns activations, not only its output."""

    def __init__(self, model: onnx.ModelProto, names: list[str]) -> None:
        open_model = onnx.ModelProto()
        open_model.CopyFrom(model)
        self._input = model.graph.input[0].name
        known = {self._input, *(value.name for value in model.graph.output)}
        values = {value.name: value for value in model.graph.value_info}
        open_model.graph.output.extend(values[name] for name in names if name not in known)
        self._names = [name for name in names if name != self._input]
        self._session = open_session(open_model.SerializeToString())

    def __call__(self, values: Floats) -> dict[str, Floats]:
        fed = {self._input: values}
        return fed | dict(zip(self._names, self._session.run(self._names, fed), strict=True))


def _energy(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())
