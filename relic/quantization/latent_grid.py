"""The 8-bit grid of the latents, on which they round as float latents do.

The host rounds y - median to the nearest integer. Let the device give k / n with whole k and n odd, after its last bias
was moved by r - median, where r is the median rounded to the grid. Then the host gets round(n (y - median)) / n, moved
by less than 1 / 2n. The borders j + 1/2 of the symbols are at least 1 / 2n from every point of the grid: with n odd
they lie between two points. So each value falls on the side of the border on which y - median is. With n even, a border
is a point of the grid, and half of its values round the wrong way.

The decoder's input is on the same grid: n times the symbol, plus n r. That is exact, except that each channel is moved
by r - median. The first bias of the decoder takes this back.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEVELS = 255
_HEADROOM = 0.125
"""Share of the range of the calibration crops that is added at both ends: other crops have larger latents."""
_LARGEST_STEPS = 15


class LatentGrid(NamedTuple):
    """Level q of 0 to 255 stands for (q - zero_point) / steps."""

    steps: int
    """Points per 1, odd."""
    zero_point: int

    @property
    def scale(self) -> np.float32:
        return np.float32(1 / self.steps)

    def offsets(self, medians: NDArray[np.float32]) -> NDArray[np.float64]:
        """r - median of each channel, (M,) like `medians`: how far its latents are moved to be on the grid."""
        exact = medians.astype(np.float64)
        moved: NDArray[np.float64] = np.rint(exact * self.steps) / self.steps - exact
        return moved


def choose_grid(low: float, high: float) -> LatentGrid | None:
    """The finest grid for values of y_hat from `low` to `high`, with headroom at both ends.

    A fine grid moves the medians less. None if not even steps of 1 cover the values.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    widened = (high - low) * (1 + 2 * _HEADROOM) + 1  # y is up to 1/2 from y_hat
    fitting = [steps for steps in range(1, _LARGEST_STEPS + 1, 2) if widened * steps <= _LEVELS]
    if not fitting and high - low > _LEVELS - 1:
        return None
    steps = fitting[-1] if fitting else 1
    return LatentGrid(steps, int(np.clip(round(_LEVELS / 2 - steps * (low + high) / 2), 0, _LEVELS)))
