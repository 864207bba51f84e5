"""The parts of an export folder in onnxruntime. Imports no torch.

Shapes: x_BCHW, x_hat_BCHW float32 in [0, 1]; y_BMhw, y_hat_BMhw float32 with h = H / stride, w = W / stride; B = 1.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime

from relic.arrays import Floats
from relic.bitstream.tables import Tables
from relic.errors import InputError
from relic.files import read_bounded
from relic.onnx.layout import TABLES, TABLES_KEY, onnx_name
from relic.onnx.model_file import check_layers_only

PartName = Literal["encoder", "decoder"]
_EXPORT_AGAIN = "export again"
_MOST_PART_BYTES = (1 << 31) - 1
"""ONNX files are protobuf, which has no longer messages."""


class OnnxPart(NamedTuple):
    """A part of an export folder, ready to run."""

    path: Path
    session: onnxruntime.InferenceSession
    fixed_size: tuple[int, int] | None
    """Height and width in pixels that it was exported for; None where these are open."""
    channels: tuple[int, int]
    """Of its input and its output."""
    stride: int
    """Pixels per latent position."""
    encodes: bool
    """Whether it goes from images to latents; else from latents to images."""

    def output_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of its output for one input of height x width."""
        if self.encodes:
            return 1, self.channels[1], height // self.stride, width // self.stride
        return 1, self.channels[1], height * self.stride, width * self.stride


def open_session(model: Path | bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of a file, or of its bytes. Warnings are not logged. `threads` 0: one per core.

    INT8 gives the same numbers on every processor: without the option below, sums of products saturate on x86
    processors without VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; 3 would print them too
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def open_encoder(folder: Path, tables: Tables, threads: int = 0) -> OnnxPart:
    """The encoder of an export folder. Raises InputError if its file is missing, damaged or belongs to other tables.

    `threads`: used inside one run; 0: onnxruntime chooses, which is all cores.
    """
    return _open_part(folder, "encoder", tables, threads)


def open_decoder(folder: Path, tables: Tables, threads: int = 0) -> OnnxPart:
    """The decoder of an export folder. Raises InputError as `open_encoder` does."""
    return _open_part(folder, "decoder", tables, threads)


def load_tables(folder: Path) -> Tables:
    """The coding tables of an export folder."""
    return Tables.load(folder / TABLES)


def check_input_size(part: OnnxPart, padded: tuple[int, int], size: tuple[int, int], stride: int) -> None:
    """Raise InputError unless the part takes an image of `size` (H, W), padded to `padded`."""
    if part.fixed_size is None or part.fixed_size == padded:
        return
    raise InputError(
        f"an image of {size[1]}x{size[0]} pixels, but {part.path} is for {part.fixed_size[1]}x{part.fixed_size[0]}: "
        f"export with --width {padded[1]} --height {padded[0]} (the next multiples of {stride}), or with --dynamic"
    )


def run_part(part: OnnxPart, values: Floats) -> Floats:
    """The part's one output for its one input, (1, C, H, W). Raises InputError naming the file if it is none."""
    try:
        (output,) = part.session.run(None, {part.session.get_inputs()[0].name: values})
    except Exception as error:  # see _open_part; also when memory runs out
        raise InputError(f"{part.path}: onnxruntime could not run it ({error})") from error
    expected = part.output_shape(*values.shape[2:])
    if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != expected:
        found = f"{output.dtype} {output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
        raise InputError(f"{part.path}: gives {found} for {values.shape}, not float32 {expected}; {_EXPORT_AGAIN}")
    if not np.isfinite(output).all():
        raise InputError(
            f"{part.path}: its output is not finite: export a checkpoint from before the training diverged"
        )
    values_out: Floats = output
    return values_out


def run_each(part: OnnxPart, inputs: Floats) -> Floats:
    """The outputs of the part for several inputs (N, C, H, W), one run each."""
    return np.concatenate([run_part(part, one[None]) for one in inputs])


def _open_part(folder: Path, name: PartName, tables: Tables, threads: int) -> OnnxPart:
    path = folder / onnx_name(name)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder that export wrote")
    try:
        data = read_bounded(path, _MOST_PART_BYTES)
        check_layers_only(data)
        session = open_session(data, threads=threads)
        digest = session.get_modelmeta().custom_metadata_map.get(TABLES_KEY)
        ends = [(each.name, each.type, each.shape) for each in (*session.get_inputs(), *session.get_outputs())]
        counts = len(session.get_inputs()), len(session.get_outputs())
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}; {_EXPORT_AGAIN}") from None
    except Exception as error:  # onnxruntime's classes have no public common base
        raise InputError(f"{path}: onnxruntime cannot load it ({error}); {_EXPORT_AGAIN}") from error
    if digest != tables.digest:
        raise InputError(f"{path}: was not exported with the {TABLES} beside it; take both from one export")
    if counts != (1, 1):
        raise InputError(f"{path}: has {counts[0]} inputs and {counts[1]} outputs, not one of each; {_EXPORT_AGAIN}")
    encodes = name == "encoder"
    channels = (3, tables.num_channels) if encodes else (tables.num_channels, 3)
    names = ("x", "y") if encodes else ("y_hat", "x_hat")
    sizes = []
    for verb, wanted_name, wanted, end in zip(("takes", "gives"), names, channels, ends, strict=True):
        sizes.append(_check_end(path, verb, wanted_name, wanted, *end))
    fed, given = sizes
    fixed = None
    if fed is not None:
        fixed = fed if encodes else (fed[0] * tables.stride, fed[1] * tables.stride)
    part = OnnxPart(path, session, fixed, channels, tables.stride, encodes)
    if fed is not None and given is not None and given != part.output_shape(*fed)[2:]:
        raise InputError(f"{path}: gives {given[1]}x{given[0]} for {fed[1]}x{fed[0]}; {_EXPORT_AGAIN}")
    return part


def _check_end(
    path: Path, verb: str, wanted_name: str, channels: int, name: str, kind: str, shape: list[Any]
) -> tuple[int, int] | None:
    """Check the input or output of a part. Returns its height and width; None where one of them is open."""
    if name != wanted_name or kind != "tensor(float)" or len(shape) != 4:
        raise InputError(
            f"{path}: {verb} {name} {kind} {shape}, not {wanted_name} of four float sizes; {_EXPORT_AGAIN}"
        )
    batch, found, *sides = shape
    if found != channels:
        raise InputError(f"{path}: {verb} {found} channels, not {channels}; {_EXPORT_AGAIN}")
    if isinstance(batch, int) and batch != 1:
        raise InputError(f"{path}: {verb} {batch} images at once; export again with --batch 1")
    if any(isinstance(side, int) and side < 1 for side in sides):
        raise InputError(f"{path}: {verb} an image of {sides[1]}x{sides[0]}; {_EXPORT_AGAIN}")
    return (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None
