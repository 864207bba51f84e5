"""Rate-distortion optimized quantization of an evaluated codec: `relic.bitstream.rdoq` with the codec's own decoder."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evaluate.codecs import Codec
from relic.arrays import Floats, Symbols
from relic.bitstream.rdoq import RdoqSettings, measure_responses, move_symbols

MoveSymbols = Callable[[Symbols, Tensor], Symbols]
"""Better symbols (M, h, w) for an image x_BCHW, B = 1."""


def mover_of(codec: Codec, settings: RdoqSettings) -> MoveSymbols | None:
    """A function that moves symbols as `settings` say, for any thread; None where they are off.

    The decoder's responses are measured here, once.
    """
    if settings.effort == "off":
        return None
    stride = codec.tables.stride

    def synthesise(y_hat_Mhw: Floats) -> Floats:
        rows, columns = y_hat_Mhw.shape[1:]
        y_hat_BMhw = torch.from_numpy(np.ascontiguousarray(y_hat_Mhw))[None]
        x_hat_CHW: Floats = codec.synthesise(y_hat_BMhw, rows * stride, columns * stride)[0].cpu().numpy()
        return x_hat_CHW

    with torch.inference_mode():
        fixed = codec.fixed_size
        size = None if fixed is None else (fixed[0] // stride, fixed[1] // stride)
        responses = measure_responses(synthesise, codec.tables, size)

    def move(symbols: Symbols, x_BCHW: Tensor) -> Symbols:
        image: Floats = x_BCHW[0].cpu().numpy()
        return move_symbols(symbols, image, synthesise, responses, codec.tables, settings)

    return move
