"""Compile one part of an export by a toolchain, and run it in the toolchain's simulator."""

from pathlib import Path

import numpy as np
import onnx

from export.onnx_files import shape_of
from export.tflite.conversion import to_tflite
from export.toolchains.registry import TOOLCHAINS
from export.toolchains.running import CompiledPart, run_script
from relic.arrays import Floats
from relic.errors import InputError
from relic.onnx.layout import TABLES_KEY, onnx_name
from relic.onnx.sessions import PartName
from relic.options import ToolchainName


def compile_part(
    name: ToolchainName, python: Path, device: str, export: Path, part: PartName, inputs: Floats, out: Path
) -> tuple[CompiledPart, Floats]:
    """Write the device files to `out`, and run the part on every row of `inputs` (N, C, H, W).

    Raises InputError with the vendor's words, and for outputs of another shape or that are not finite.
    """
    file = export / onnx_name(part)
    model = onnx.load(file)
    try:
        if name == "ethos-u":
            about = {entry.key: entry.value for entry in model.metadata_props}
            data = to_tflite(model, f"relic {part}, tables {about[TABLES_KEY]}")
            file = out / f"{part}.tflite"
            file.write_bytes(data)
        compiled, outputs = run_script(python, TOOLCHAINS[name].script, part, device, file, inputs, out)
    except InputError as error:
        raise InputError(f"--toolchain {name}: {error}") from error
    shape = (len(inputs), *shape_of(model, "o")[1:])
    if outputs.shape != shape or not np.isfinite(outputs).all():
        raise InputError(
            f"--toolchain {name}: its simulator gives {outputs.shape} for the {part}, or values that are not finite, "
            f"and not finite values of {shape}"
        )
    return compiled, outputs
