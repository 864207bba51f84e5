"""The parts of an export folder in onnxruntime. Imports no torch.

Shapes: x_BCHW, x_hat_BCHW float32 in [0, 1]; y_BMhw, y_hat_BMhw float32 with h = H / stride, w = W / stride; B = 1.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from relic.bitstream.tables import Tables
from relic.errors import InputError
from relic.onnx.layout import DECODER, ENCODER, TABLES, TABLES_KEY

Floats = npt.NDArray[np.float32]


class OnnxPart(NamedTuple):
    """A part of an export folder, ready to run."""

    path: Path
    session: onnxruntime.InferenceSession
    fixed_size: tuple[int, int] | None
    """Height and width in pixels that it was exported for; None where these are open."""


def open_session(model: Path | bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of a file, or of its bytes. Warnings are not logged. `threads` 0: one per core.

    INT8 gives the same numbers on every processor: without the option below, sums of products saturate on x86
    processors without VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors also come as exceptions
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def open_encoder(folder: Path, tables: Tables, threads: int = 0) -> OnnxPart:
    """The encoder of an export folder. Raises InputError if its file is missing, damaged or belongs to other tables.

    `threads`: used inside one run; 0: onnxruntime chooses, which is all cores.
    """
    return _open_part(folder / ENCODER, tables, channels=3, stride=1, threads=threads)


def open_decoder(folder: Path, tables: Tables, threads: int = 0) -> OnnxPart:
    """The decoder of an export folder. Raises InputError as `open_encoder` does."""
    return _open_part(folder / DECODER, tables, channels=tables.num_channels, stride=tables.stride, threads=threads)


def load_tables(folder: Path) -> Tables:
    """The coding tables of an export folder."""
    return Tables.load(folder / TABLES)


def check_size(part: OnnxPart, padded: tuple[int, int], size: tuple[int, int], stride: int) -> None:
    """Raise InputError unless the part takes an image of `size` (H, W), padded to `padded`."""
    if part.fixed_size is None or part.fixed_size == padded:
        return
    raise InputError(
        f"an image of {size[1]}x{size[0]} pixels, but {part.path} is for {part.fixed_size[1]}x{part.fixed_size[0]}: "
        f"export with --width {padded[1]} --height {padded[0]} (the next multiples of {stride}), or with --dynamic"
    )


def run_part(part: OnnxPart, values: Floats) -> Floats:
    """The part's one output for its one input."""
    try:
        (output,) = part.session.run(None, {part.session.get_inputs()[0].name: values})
    except Exception as error:  # see _open_part; also when memory runs out
        raise InputError(f"{part.path}: onnxruntime could not run it ({error})") from error
    values_out: Floats = output
    return values_out


def _open_part(path: Path, tables: Tables, *, channels: int, stride: int, threads: int) -> OnnxPart:
    try:
        session = open_session(path, threads=threads)
    except Exception as error:  # onnxruntime's classes have no public common base
        raise InputError(f"{path}: onnxruntime cannot load it ({error}); export again") from error
    digest = session.get_modelmeta().custom_metadata_map.get(TABLES_KEY)
    if digest != tables.digest:
        raise InputError(f"{path}: was not exported with the {TABLES} beside it; take both from one export")
    batch, found, height, width = session.get_inputs()[0].shape
    if found != channels:
        raise InputError(f"{path}: takes {found} channels, not {channels}; export again")
    if isinstance(batch, int) and batch != 1:
        raise InputError(f"{path}: takes {batch} images at once; export again with --batch 1")
    is_fixed = isinstance(height, int) and isinstance(width, int)
    return OnnxPart(path, session, (height * stride, width * stride) if is_fixed else None)
