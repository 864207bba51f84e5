"""Rate-distortion optimized quantization of an evaluated codec: `relic.bitstream.rdoq` with the codec's own decoder."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evaluate.codecs import Codec
from relic.arrays import Floats, Symbols
from relic.bitstream.rdoq import RdoqSettings, mover_of

MoveImageSymbols = Callable[[Symbols, Tensor], Symbols]
"""Better symbols (M, h, w) for an image x_BCHW, B = 1."""


def mover_for(codec: Codec, settings: RdoqSettings) -> MoveImageSymbols | None:
    """A function that moves symbols as `settings` say, for any thread; None where they are off."""
    if settings.effort == "off":
        return None
    stride = codec.tables.stride

    def synthesise(y_hat_Mhw: Floats) -> Floats:
        rows, columns = y_hat_Mhw.shape[1:]
        y_hat_BMhw = torch.from_numpy(np.ascontiguousarray(y_hat_Mhw))[None]
        x_hat_CHW: Floats = codec.synthesise(y_hat_BMhw, rows * stride, columns * stride)[0].cpu().numpy()
        return x_hat_CHW

    with torch.inference_mode():
        move = mover_of(synthesise, codec.tables, settings, codec.fixed_size)
    return lambda symbols, x_BCHW: move(symbols, x_BCHW[0].cpu().numpy())
