"""From the torch model to the bitstream, which needs no torch: tables and symbols.

Shapes: x_BCHW float32 in [0, 1]; y_BMhw float32 with h = ceil(H / 16), w = ceil(W / 16).
"""

import numpy as np
import numpy.typing as npt
import torch
from compressai.models import FactorizedPrior
from torch import Tensor
from torch.nn import functional as F

from relic.bitstream.contexts import Contexts
from relic.bitstream.tables import Tables
from relic.codec.constants import STRIDE
from relic.codec.entropy import medians_of


def tables_of(model: FactorizedPrior, contexts: Contexts | None = None) -> Tables:
    """The model's CDF tables and medians, with the contexts of its checkpoint.

    Call `relic.codec.entropy.refresh_tables` before.
    """
    bottleneck = model.entropy_bottleneck
    return Tables(
        cdf=bottleneck._quantized_cdf.cpu().numpy(),
        cdf_length=bottleneck._cdf_length.cpu().numpy(),
        offset=bottleneck._offset.cpu().numpy(),
        medians=bottleneck.quantiles[:, 0, 1].detach().cpu().numpy(),
        stride=STRIDE,
        contexts=contexts,
    )


def pad_to_stride(x_BCHW: Tensor) -> Tensor:
    """Repeat the right and bottom edges until both sides are multiples of the model's stride."""
    height, width = x_BCHW.shape[2:]
    return F.pad(x_BCHW, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


@torch.inference_mode()
def analyse(model: FactorizedPrior, x_BCHW: Tensor) -> npt.NDArray[np.int32]:
    """Integer symbols (B, M, h, w) of images: the latents, rounded about the medians."""
    y = model.g_a(pad_to_stride(x_BCHW))
    return torch.round(y - medians_of(model)).int().cpu().numpy()
