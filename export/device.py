"""The codec on a device: an ONNX part in onnxruntime, the tables, and nothing of torch.

Shapes: pixels_HWC uint8; x_1CHW, x_hat_1CHW float32 in [0, 1]; y_1Mhw float32; symbols int32 (M, h, w).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.layout import DECODER, ENCODER, TABLES, TABLES_KEY
from export.pictures import Pixels
from export.session import open_session
from relic.bitstream.container import Stream, latent_shape, pack
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.errors import InputError

Floats = npt.NDArray[np.float32]


class OnnxPart(NamedTuple):
    """A part of an export folder, ready to run."""

    path: Path
    session: onnxruntime.InferenceSession
    fixed_size: tuple[int, int] | None
    """Height and width in pixels it was exported for; None when these are open."""


def open_encoder(folder: Path, tables: Tables) -> OnnxPart:
    """The encoder of an export folder. Raises InputError for a file that is missing, damaged or of other tables."""
    return _open_part(folder / ENCODER, tables, channels=3, stride=1)


def open_decoder(folder: Path, tables: Tables) -> OnnxPart:
    """The decoder of an export folder. Raises InputError as `open_encoder` does."""
    return _open_part(folder / DECODER, tables, channels=tables.num_channels, stride=tables.stride)


def load_tables(folder: Path) -> Tables:
    """The coding tables of an export folder."""
    return Tables.load(folder / TABLES)


def encode(pixels_HWC: Pixels, encoder: OnnxPart, tables: Tables) -> bytes:
    """A picture to the bytes of a `.relic` file; sides that are no multiple of the stride are padded by their edges."""
    height, width = pixels_HWC.shape[:2]
    _, rows, columns = latent_shape(width, height, tables)
    padded = rows * tables.stride, columns * tables.stride
    _check_size(encoder, padded, (height, width), tables.stride)
    edges = [(0, padded[0] - height), (0, padded[1] - width), (0, 0)]
    x_CHW = np.pad(pixels_HWC, edges, mode="edge").transpose(2, 0, 1) / np.float32(255)
    y_1Mhw = _run(encoder, np.ascontiguousarray(x_CHW[None]))
    return pack(quantize(y_1Mhw[0], tables), width, height, tables)


def decode(stream: Stream, decoder: OnnxPart, tables: Tables) -> Pixels:
    """The picture of a `.relic` file, cut to its true size and rounded to 8 bits (half to even)."""
    rows, columns = stream.symbols.shape[1:]
    padded = rows * tables.stride, columns * tables.stride
    _check_size(decoder, padded, (stream.height, stream.width), tables.stride)
    x_hat_CHW = _run(decoder, dequantize(stream.symbols, tables)[None])[0, :, : stream.height, : stream.width]
    return np.rint(x_hat_CHW.clip(0, 1) * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)


def _open_part(path: Path, tables: Tables, *, channels: int, stride: int) -> OnnxPart:
    try:
        session = open_session(path)
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


def _check_size(part: OnnxPart, padded: tuple[int, int], size: tuple[int, int], stride: int) -> None:
    if part.fixed_size is None or part.fixed_size == padded:
        return
    raise InputError(
        f"a picture of {size[1]}x{size[0]} pixels, but {part.path} is for {part.fixed_size[1]}x{part.fixed_size[0]}: "
        f"export with --width {padded[1]} --height {padded[0]} (the next multiples of {stride}), or with --dynamic"
    )


def _run(part: OnnxPart, values: Floats) -> Floats:
    try:
        (result,) = part.session.run(None, {part.session.get_inputs()[0].name: values})
    except Exception as error:  # see _open_part; running out of memory comes here
        raise InputError(f"{part.path}: onnxruntime could not run it ({error})") from error
    return result
