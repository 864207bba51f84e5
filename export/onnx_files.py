"""Trace a part to a checked ONNX model, and describe it in the file's metadata."""

import json
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from torch import nn

from export.parts import INPUT_NAMES, OUTPUT_NAMES, Part, build_part
from export.source import ExportSource
from relic.codec.constants import STRIDE
from relic.errors import InputError
from relic.onnx.layout import TABLES_KEY, onnx_name
from relic.options import Upsample

_HOST_OPERATORS = {"Round", "Softplus", "Sigmoid", "Tanh", "MatMul"}
"""Operators of rounding and of the entropy model. Encoder and decoder must have none of them."""


class InputSize(NamedTuple):
    """The size that a file is exported for."""

    batch: int
    height: int
    width: int
    dynamic: bool
    """Batch, height and width are open. The model is traced with those above."""


def export_part(part: Part, source: ExportSource, size: InputSize, opset: int, upsample: Upsample) -> onnx.ModelProto:
    """Trace and check one part, and infer its shapes.

    Raises InputError if torch wrote another opset.
    """
    channels = source.architecture.channels[1] if part == "decoder" else 3
    scale = STRIDE if part == "decoder" else 1
    example = torch.zeros(size.batch, channels, size.height // scale, size.width // scale)
    model = _trace(part, build_part(part, source.model, upsample), example, size.dynamic, opset)
    _settle_constants(model)
    written = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if written != [opset] or len(model.opset_import) != 1:
        raise InputError(f"--opset {opset}: torch {torch.__version__} wrote {model.opset_import}; choose another")
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    assert part == "full" or not _HOST_OPERATORS & operators(model).keys()
    assert size.dynamic or all(isinstance(side, int) for name in "io" for side in shape_of(model, name))
    return model


def _trace(part: Part, module: nn.Module, example: torch.Tensor, dynamic: bool, opset: int) -> onnx.ModelProto:
    names = INPUT_NAMES[part], OUTPUT_NAMES[part]
    image, latent = ({0: "batch", 2: f"{prefix}height", 3: f"{prefix}width"} for prefix in ("", "latent_"))
    axes = {name: latent if name.startswith("y") else image for name in names}
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        path = Path(folder) / onnx_name(part)
        warnings.simplefilter("ignore")
        exporter.setLevel(logging.ERROR)
        try:
            # torch's newer exporter always writes opset 18 or newer.
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_axes=axes if dynamic else None,
            )
        finally:
            exporter.setLevel(level)
        return onnx.load(path)


def _settle_constants(model: onnx.ModelProto) -> None:
    """Turn constants, and copies of equal tensors, from nodes into initializers: they compute nothing."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Constant":
            tensor = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in tensors:
            tensor = tensors[node.input[0]]
        else:
            continue
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """The number of nodes per operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def shape_of(model: onnx.ModelProto, side: str) -> list[int | str]:
    """The shape of the input (`i`) or output (`o`). An open size is given by its name."""
    value = model.graph.input[0] if side == "i" else model.graph.output[0]
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def describe_part(model: onnx.ModelProto, part: Part, source: ExportSource, values: dict[str, Any]) -> None:
    """Describe the model in its metadata, so that a file without export.json can be identified. `values` are plain."""
    metadata = {
        "relic.part": part,
        "relic.architecture": json.dumps(source.architecture._asdict()),
        TABLES_KEY: source.tables.digest,
        **{f"relic.{name}": json.dumps(value) for name, value in values.items()},
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
