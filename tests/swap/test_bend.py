"""One ReLU that bends at bright colours: taken where the targets are curved, and nowhere else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from relic.swap.bend import bend_if_better
from relic.swap.refit import Chunks, FittedLayer, Regression, relu_of_lifted, share_clipped

_CHANNELS = 4


class Case:
    """Eight crops behind `previous`: channel 2 is almost the sum of channels 0 and 1, and channel 3 the smallest."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.previous = nn.ConvTranspose2d(_CHANNELS, _CHANNELS, 5, 2, 2, 1).requires_grad_(False)
        with torch.no_grad():
            own = self.previous.weight[:, 2] * 0.01
            self.previous.weight[:, 2] = self.previous.weight[:, 0] + self.previous.weight[:, 1] + own
            self.previous.weight[:, 3] *= 0.5
        self.inputs: Chunks = [torch.randn(4, _CHANNELS, 12, 12) for _ in range(2)]
        self.outputs: Chunks = [self.previous(chunk) for chunk in self.inputs]
        last = nn.ConvTranspose2d(_CHANNELS, 3, 5, 2, 2, 1).requires_grad_(False)
        last.weight.abs_()  # every channel makes the picture brighter
        self.pictures: Chunks = [last(chunk) for chunk in self.outputs]

    def fit(self, goal: Chunks) -> tuple[Regression, FittedLayer, Tensor]:
        regression = Regression(
            layer=nn.ConvTranspose2d(_CHANNELS, 3, 5, 2, 2, 1).requires_grad_(False),
            before=[chunk.clone() for chunk in self.outputs],
            goal=goal,
            device=torch.device("cpu"),
            num_held_out=4,
            weights_B=torch.ones(8, dtype=torch.float64),
            advance=lambda share: None,
        )
        return regression, *regression.fit_behind_relu("last")


def bright_part(pictures: Chunks, weights: Tensor) -> Chunks:
    """What even areas of 2x2 pixels have above 1.5 standard deviations of `weights` @ channels, as pictures."""
    values = [torch.einsum("c,bchw->bhw", weights, chunk) for chunk in pictures]
    every = torch.cat(values)
    bound = every.mean() + 1.5 * every.std()
    return [(value - bound).relu()[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3) for value in values]


def test_a_curve_at_bright_colours_is_followed_in_the_channel_that_is_missed_least() -> None:
    case = Case()
    curve = bright_part(case.outputs, torch.ones(_CHANNELS))
    goal = [picture + 4 * bright for picture, bright in zip(case.pictures, curve, strict=True)]
    regression, straight, lift = case.fit(goal)
    before = copy.deepcopy(case.previous)
    bent, bent_lift = bend_if_better(regression, case.previous, straight, lift)
    assert bent.bent and not straight.bent
    assert bent.error < 0.7 * straight.error
    (channel,) = (c for c in range(_CHANNELS) if not torch.equal(before.weight[:, c], case.previous.weight[:, c]))
    assert channel in (0, 1, 2)
    assert [c for c in range(_CHANNELS) if lift[c] != bent_lift[c]] == [channel]
    # The weights compute what was fitted. The first chunk is held out.
    for chunk, inputs in zip(regression.before, case.inputs, strict=True):
        assert torch.allclose(case.previous(inputs), chunk, atol=1e-4)
    found = regression.layer(relu_of_lifted(case.previous(case.inputs[0]), bent_lift))
    deviation = (goal[0] - goal[0].mean((0, 2, 3), keepdim=True)).square().sum()
    assert float((found - goal[0]).square().sum() / deviation) == pytest.approx(bent.error, rel=0.3)
    # 1.5 standard deviations: 6.7 % of a normal distribution are above.
    above = 1 - share_clipped([chunk[:, [channel]] for chunk in regression.before], bent_lift[[channel]])
    assert above == pytest.approx(0.067, abs=0.02)


def test_nothing_changes_where_it_does_not_help() -> None:
    case = Case()
    case.previous.weight[:, 2] = torch.randn_like(case.previous.weight[:, 2])
    case.outputs = [case.previous(chunk) for chunk in case.inputs]
    last = nn.ConvTranspose2d(_CHANNELS, 3, 5, 2, 2, 1).requires_grad_(False)
    regression, straight, lift = case.fit([last(chunk) for chunk in case.outputs])
    previous, layer = copy.deepcopy(case.previous), copy.deepcopy(regression.layer)
    assert bend_if_better(regression, case.previous, straight, lift) == (straight, lift)
    for now, then in ((case.previous, previous), (regression.layer, layer)):
        assert all(torch.equal(now.state_dict()[name], value) for name, value in then.state_dict().items())
    assert all(torch.equal(now, then) for now, then in zip(regression.before, case.outputs, strict=True))


@pytest.mark.parametrize("constant", [1, _CHANNELS])
def test_constant_channels_do_no_harm(constant: int) -> None:
    case = Case()
    case.previous.weight[:, :constant] = 0
    case.outputs = [case.previous(chunk) for chunk in case.inputs]
    regression, straight, lift = case.fit(case.pictures)
    bent, _ = bend_if_better(regression, case.previous, straight, lift)
    assert bent.error <= straight.error
