"""Check that onnxruntime computes from a file what torch computes from the model.

Differences are relative to the size of the output: |onnx - torch| / max(1, max |torch|). For images in [0, 1] that is
the plain difference. Float32 latents of +-1000 would differ by more than 1e-4 between any two implementations.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from compressai.models import FactorizedPrior

from export.check_inputs import CheckInputs
from export.parts import INPUT_NAMES, Part
from export.source import ExportSource
from relic.arrays import Floats
from relic.bitstream.tables import dequantize
from relic.codec.coding import analyse
from relic.errors import InputError
from relic.onnx.sessions import open_session

TOLERANCE = 1e-4


class Parity(NamedTuple):
    """The largest difference between a part and torch, and the ranges of input and output."""

    error: float
    max_abs_diff: float
    batches: int
    input_range: tuple[float, float]
    output_range: tuple[float, float]
    """Of the torch model."""
    changed_symbols: int = 0
    """Latents of `full` that were rounded the other way, being between two integers within the tolerance."""


class _Comparison(NamedTuple):
    """One batch."""

    fed: Floats
    expected: Floats
    error: float
    max_abs_diff: float
    changed_symbols: int = 0


def check_parity(part: Part, model: onnx.ModelProto, source: ExportSource, inputs: CheckInputs) -> Parity:
    """Run the part on every input in onnxruntime and compare with the original model, before any rewriting of layers.

    The decoder gets the rounded latents of the images, and the drawn latents. Raises InputError above TOLERANCE.
    """
    if part == "encoder":
        compared = _compare(part, model, source.model.g_a, inputs.images)
    elif part == "decoder":
        latents = [dequantize(analyse(source.model, torch.from_numpy(x)), source.tables) for x in inputs.images]
        compared = _compare(part, model, _synthesis(source.model), latents + inputs.latents)
    else:
        compared = _compare_full(model, source, inputs.images)
    parity = Parity(
        error=float(np.max([one.error for one in compared])),
        max_abs_diff=float(np.max([one.max_abs_diff for one in compared])),
        batches=len(compared),
        input_range=_range_of([one.fed for one in compared]),
        output_range=_range_of([one.expected for one in compared]),
        changed_symbols=sum(one.changed_symbols for one in compared),
    )
    if not parity.error <= TOLERANCE:  # written so that NaN fails
        raise InputError(
            f"{part}: onnxruntime {onnxruntime.__version__} differs from torch by {parity.error:.2g} (tolerance "
            f"{TOLERANCE:g}), so nothing was written; try another --opset or onnxruntime"
        )
    return parity


@torch.inference_mode()
def _compare(
    part: Part, model: onnx.ModelProto, reference: Callable[[torch.Tensor], torch.Tensor], inputs: list[Floats]
) -> list[_Comparison]:
    session = open_session(model.SerializeToString())
    compared = []
    for fed in inputs:
        expected = reference(torch.from_numpy(fed)).numpy()
        (found,) = session.run(None, {INPUT_NAMES[part]: fed})
        compared.append(_Comparison(fed, expected, _scaled(found - expected, expected), _largest(found - expected)))
    return compared


@np.errstate(invalid="ignore")  # values that are not finite fail the check below
@torch.inference_mode()
def _compare_full(model: onnx.ModelProto, source: ExportSource, inputs: list[Floats]) -> list[_Comparison]:
    """Compare the two halves of `full`: x_hat with torch's synthesis of the file's symbols, and these with torch's y.

    A latent halfway between two integers may be rounded either way, and both are right. The pixels around it then
    differ by far more than any tolerance. A symbol that was rounded the other way therefore counts with the distance
    of its latent from that halfway point.
    """
    session, looking_inside = (open_session(one.SerializeToString()) for one in (model, _with_y_hat(model)))
    compared = []
    for fed in inputs:
        (found,) = session.run(None, {"x": fed})
        own_y_hat = looking_inside.run(None, {"x": fed})[1]
        symbols = np.rint(own_y_hat - source.tables.medians[:, None, None]).astype(np.int32)
        y_hat = dequantize(symbols, source.tables)
        expected = _synthesis(source.model)(torch.from_numpy(y_hat)).numpy()
        y = source.model.g_a(torch.from_numpy(fed)).numpy()
        # y_hat is within 1/2 of the y that was rounded. What exceeds 1/2 is the difference between this y and torch's.
        moved = np.maximum(np.abs(y - y_hat) - 0.5, 0)
        off_level = own_y_hat - y_hat
        error = float(np.max([_scaled(found - expected, expected), _scaled(moved, y), _scaled(off_level, y)]))
        changed = int((symbols != analyse(source.model, torch.from_numpy(fed))).sum())
        compared.append(_Comparison(fed, expected, error, _largest(found - expected), changed))
    return compared


def _synthesis(model: FactorizedPrior) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y_hat: model.g_s(y_hat).clamp(0, 1)


def _with_y_hat(model: onnx.ModelProto) -> onnx.ModelProto:
    """`full` with y_hat, the sum of rounded latents and medians, as a second output."""
    (rounded,) = (node.output[0] for node in model.graph.node if node.op_type == "Round")
    (y_hat,) = (node.output[0] for node in model.graph.node if rounded in node.input)
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.append(next(value for value in model.graph.value_info if value.name == y_hat))
    return extended


def _largest(values: Floats) -> float:
    return float(np.abs(values).max())


def _scaled(difference: Floats, expected: Floats) -> float:
    return _largest(difference) / max(1.0, _largest(expected))


def _range_of(arrays: list[Floats]) -> tuple[float, float]:
    return float(np.min([array.min() for array in arrays])), float(np.max([array.max() for array in arrays]))
