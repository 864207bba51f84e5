"""Steps of weights for which runtimes that sum float32 round as those that sum integers do.

A layer sums products of whole levels. The sum s is rounded to output level s / r, where r = (step of the output) /
(step of the input x step of the weights). Some runtimes sum integers, others float32. Their results differ by a part of
1, and so where s is near a border between two levels, r (k + 1/2), they can round to different levels.

Let r = p / q with p odd. Then a border is an odd number / 2q: at least 1 / 2q from every whole number. So q is kept
small where float32 is less exact, which is where r is large: q <= 2000 / r. On calibrated codecs the error of float32
is then at most 0.6 of the distance.

The step is changed by as little as that allows, by 0.0003 of itself or less on average. A change by more than 1 / 254
would move the largest weight off its level, 127. That costs: 0.4 % for all channels cost 2 dB in the decoder's output.
"""

import torch
from torch import Tensor

_EXACTNESS = 2000
"""q times r is at most this."""
_LARGEST_Q = 32
_LARGEST_CHANGE = 1 / 254


def off_borders(steps: Tensor, step_in: float | Tensor, step_out: float | Tensor) -> Tensor:
    """The nearest steps of weights (any shape) for which no sum of integers is near a border of the output.

    A step that would be changed by more than 1 / 254 stays.
    """
    step_in, step_out = (
        torch.as_tensor(step, dtype=torch.float64, device=steps.device) for step in (step_in, step_out)
    )
    exact = steps.double()
    r = step_out / (step_in * exact)
    q = torch.arange(1, _LARGEST_Q + 1, device=steps.device).view([-1] + [1] * r.ndim)
    p = (2 * ((r * q - 1) / 2).round() + 1).clamp(min=1)
    ratios = r * q / p
    changes = torch.where((q == 1) | (q * r <= _EXACTNESS), (ratios - 1).abs(), torch.inf)
    smallest, place = changes.min(0, keepdim=True)
    changed = exact * ratios.gather(0, place)[0]
    return torch.where(smallest[0] < _LARGEST_CHANGE, changed, exact).to(steps)
