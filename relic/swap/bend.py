"""One ReLU before the decoder's last layer that bends at bright colours.

GDN's colours are a curved function of the latents, steeper for bright colours. A shifted ReLU clips almost nothing, so
that a calibrated decoder is nearly linear, and a bright smooth crop is off by a constant. One bend at the right place
removes most of this error. It takes the place of the channel that the last layer misses least.
"""

import torch
from torch import Tensor, nn

from relic.codec.model import ConvLayer
from relic.swap.refit import Chunks, FittedLayer, Regression, count_and_mean

_BEND = 1.5
"""Standard deviations of the brightness above its mean, where the ReLU starts."""
_NUGGET = 1e-6
"""Share of the mean variance that is added to each, so that a constant channel does no harm."""


def bend_if_better(
    regression: Regression, previous: ConvLayer, fitted: FittedLayer, lift: Tensor
) -> tuple[FittedLayer, Tensor]:
    """Let one ReLU compute how far the brightness is above a bound, if this lowers the error on held-out crops.

    `previous` is the layer that computes `regression.before`; `fitted` and `lift`, (C,), are the regression's results
    without a bend. Returns those to use. With a bend, one channel of `previous` and of `regression.before` is replaced.
    """
    layer, before = regression.layer, regression.before
    assert isinstance(layer, nn.ConvTranspose2d) and isinstance(previous, nn.ConvTranspose2d)
    assert layer.bias is not None and previous.bias is not None
    weight = layer.weight.double().cpu()
    mean, covariance = _covariance(before)
    deviation = covariance.diagonal().mean().sqrt()
    # On an even surface, the brightness of the picture is a weighted sum of the channels.
    brightness = weight.sum((1, 2, 3))
    mix = brightness * deviation / (brightness @ covariance @ brightness).sqrt()
    if not mix.isfinite().all():
        return fitted, lift
    # What a channel has of its own is its variance given the others.
    own = 1 / torch.linalg.inv(covariance + _NUGGET * deviation**2 * torch.eye(len(mix))).diagonal()
    channel = int((own * weight.square().sum((1, 2, 3))).argmin())

    kept = [chunk[:, channel].clone() for chunk in before], layer.weight.clone(), layer.bias.clone()
    for chunk in before:
        chunk[:, channel] = torch.einsum("c,bchw->bhw", mix.to(chunk), chunk)
    bent_lift = lift.clone()
    bent_lift[channel] = -mix @ mean - _BEND * deviation
    bent = regression.fit_lifted(fitted.name, fitted.shift, bent_lift)
    if bent.error < fitted.error:
        for values in (previous.weight.data, previous.bias.data[None]):
            values[:, channel] = torch.einsum("c,bc...->b...", mix.to(values), values)
        return bent._replace(bent=True), bent_lift
    for chunk, column in zip(before, kept[0], strict=True):
        chunk[:, channel] = column
    layer.weight.copy_(kept[1])
    layer.bias.copy_(kept[2])
    return fitted, lift


def _covariance(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the channels, float64."""
    values, mean = count_and_mean(chunks)
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for chunk in chunks:
        centred = (chunk - mean.float()[:, None, None]).transpose(0, 1).flatten(1)
        products += centred @ centred.T
    return mean, products / values
