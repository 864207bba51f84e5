"""Make the parts to be timed: a GDN and a ReLU codec with random weights, in fp32 and INT8, for images of any size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export.int8.inputs import Calibration
from export.int8.quantization import quantize_part
from export.onnx_files import InputSize, export_part
from export.parts import Part
from export.source import ExportSource
from relic.codec.coding import tables_of
from relic.codec.constants import STRIDE
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, build_model
from relic.files import temporary_folder
from relic.options import Parts, Upsample

CODECS: dict[str, Parts] = {"gdn": "none", "relu": "all"}
PRECISIONS = ("fp32", "int8")
PARTS: tuple[Part, ...] = ("encoder", "decoder")
_OPSET = 13
_CALIBRATING = 4
_SIDE = 128


class TimedPart(NamedTuple):
    """A part to be timed."""

    codec: str
    precision: str
    part: Part
    model: onnx.ModelProto

    def input_for(self, width: int, height: int, channels: int) -> NDArray[Any]:
        """Noise in the shape of the part's input. `channels`: number of latent channels."""
        scale, depth = (1, 3) if self.part == "encoder" else (STRIDE, channels)
        return np.random.default_rng(0).random((1, depth, height // scale, width // scale), dtype=np.float32)


def timed_parts(channels: tuple[int, int], upsample: Upsample) -> Iterator[TimedPart]:
    """Yield both parts of each codec in each precision."""
    for codec, replaced in CODECS.items():
        torch.manual_seed(0)
        architecture = Architecture(channels, replaced)
        model = build_model(architecture).eval()
        refresh_tables(model, solve=False)
        source = ExportSource(model, architecture, tables_of(model), {})
        with temporary_folder() as folder:
            calibration = _noise(folder, channels[1])
            for part in PARTS:
                exported = export_part(part, source, InputSize(1, _SIDE, _SIDE, dynamic=True), _OPSET, upsample)
                yield TimedPart(codec, "fp32", part, exported)
                int8 = quantize_part(part, exported, calibration, source.tables.medians, "minmax", keep_last=False)
                yield TimedPart(codec, "int8", part, int8)


def _noise(folder: Path, channels: int) -> Calibration:
    """Noise as calibration inputs: the ranges do not change the time."""
    rng = np.random.default_rng(0)
    written = Calibration([], [])
    for number in range(_CALIBRATING):
        x = rng.random((1, 3, _SIDE, _SIDE), dtype=np.float32)
        y_hat = rng.normal(0, 4, (1, channels, _SIDE // STRIDE, _SIDE // STRIDE)).round().astype(np.float32)
        for files, values, name in ((written.encoder, x, "x"), (written.decoder, y_hat, "y_hat")):
            files.append(folder / f"{name}{number}.npy")
            np.save(files[-1], values)
    return written
