"""The codec on a device: an ONNX part in onnxruntime, the tables, and nothing of torch.

Shapes: pixels_HWC uint8; x_1CHW, x_hat_1CHW float32 in [0, 1]; y_1Mhw float32; symbols int32 (M, h, w).
"""

import numpy as np

from export.pictures import Pixels
from relic.bitstream.container import Stream, latent_shape, pack
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.onnx.sessions import OnnxPart, check_size, run_part


def encode(pixels_HWC: Pixels, encoder: OnnxPart, tables: Tables) -> bytes:
    """A picture to the bytes of a `.relic` file; sides that are no multiple of the stride are padded by their edges."""
    height, width = pixels_HWC.shape[:2]
    _, rows, columns = latent_shape(width, height, tables)
    padded = rows * tables.stride, columns * tables.stride
    check_size(encoder, padded, (height, width), tables.stride)
    edges = [(0, padded[0] - height), (0, padded[1] - width), (0, 0)]
    x_CHW = np.pad(pixels_HWC, edges, mode="edge").transpose(2, 0, 1) / np.float32(255)
    y_1Mhw = run_part(encoder, np.ascontiguousarray(x_CHW[None]))
    return pack(quantize(y_1Mhw[0], tables), width, height, tables)


def decode(stream: Stream, decoder: OnnxPart, tables: Tables) -> Pixels:
    """The picture of a `.relic` file, cut to its true size and rounded to 8 bits (half to even)."""
    rows, columns = stream.symbols.shape[1:]
    padded = rows * tables.stride, columns * tables.stride
    check_size(decoder, padded, (stream.height, stream.width), tables.stride)
    x_hat_CHW = run_part(decoder, dequantize(stream.symbols, tables)[None])[0, :, : stream.height, : stream.width]
    pixels: Pixels = np.rint(x_hat_CHW.clip(0, 1) * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)
    return pixels
