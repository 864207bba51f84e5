"""SOAP: Adam in the eigenbases of the gradient's covariances (Vyas et al. 2024, arXiv 2409.11321).

Beside it, relic's own `train/preconditioning.py` is not needed: its coordinates are fixed.

Adam scales each value of a kernel by itself. SOAP first turns the gradient so that its values are decorrelated over the
outputs, the inputs and the taps. Adam's running squares are kept in these coordinates, and its step is turned back.

Shapes: a kernel is viewed as (O, C, T), or (C, O, T) if transposed: channels, channels, taps.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_EVERY = 10
"""Steps between updates of the bases."""
_COVARIANCE_BETA = 0.95
_EPSILON = 1e-8


class Soap(torch.optim.Optimizer):
    """SOAP for kernels (4 dimensions), Adam for all other parameters.

    The first step measures the bases of a kernel and does not move it. Weights stay equal on several ranks only if the
    bases do: `share` gets tensors after they were computed, and sets them to those of rank 0.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        share: Callable[[list[Tensor]], object] = lambda tensors: None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})
        self._share = share

    @staticmethod
    def state_shapes(parameter: Tensor) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors in the state of a parameter."""
        shape, sides = tuple(parameter.shape), _by_axes(parameter).shape if parameter.ndim == 4 else ()
        of_axes = {
            f"{name}_{axis}": (side, side) for axis, side in enumerate(sides) for name in ("covariance", "basis")
        }
        return {"exp_avg": shape, "exp_avg_sq": shape, **of_axes}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient. `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], *group["betas"])

    def _update(self, parameter: nn.Parameter, lr: float, beta1: float, beta2: float) -> None:
        assert parameter.grad is not None
        state, gradient = self.state[parameter], _by_axes(parameter.grad)
        is_new, axes = not state, range(3) if parameter.ndim == 4 else range(0)
        if is_new:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for axis in axes:
            rows = gradient.transpose(0, axis).flatten(1)
            covariance = rows @ rows.T
            if is_new:
                state[f"covariance_{axis}"] = covariance
                state[f"basis_{axis}"] = torch.linalg.eigh(covariance.double())[1].flip(1).to(covariance)
            else:
                state[f"covariance_{axis}"].lerp_(covariance, 1 - _COVARIANCE_BETA)
        bases = [state[f"basis_{axis}"] for axis in axes]
        if is_new and bases:
            self._share(bases)
            return
        average, squares = _by_axes(state["exp_avg"]), _by_axes(state["exp_avg_sq"])
        state["step"] += 1
        turned = _turned(gradient, bases)
        average.lerp_(gradient, 1 - beta1)
        squares.mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        deviation = (squares / (1 - beta2 ** state["step"])).sqrt_().add_(_EPSILON)
        change = _turned(average, bases).div_(deviation)
        change = _turned(change, [basis.T for basis in bases])
        _by_axes(parameter).add_(change, alpha=-lr / (1 - beta1 ** state["step"]))
        if bases and state["step"] % _EVERY == 0:
            self._turn_bases(state, squares)

    def _turn_bases(self, state: dict[str, Any], squares: Tensor) -> None:
        """One step of the power iteration. Vectors are sorted by variance first, and take their squares along."""
        bases = []
        for axis in range(3):
            covariance, basis = state[f"covariance_{axis}"], state[f"basis_{axis}"]
            order = (basis * (covariance @ basis)).sum(0).argsort(descending=True)
            squares.copy_(squares.index_select(axis, order))
            basis.copy_(torch.linalg.qr(covariance @ basis[:, order])[0])
            bases.append(basis)
        self._share(bases)


def _by_axes(values: Tensor) -> Tensor:
    """A view of a kernel with one axis for its taps. Other tensors as they are."""
    return values.flatten(2) if values.ndim == 4 else values


def _turned(values: Tensor, bases: list[Tensor]) -> Tensor:
    """`values` in the coordinates of the columns of `bases`, one per axis. Without bases a copy."""
    if not bases:
        return values.clone()
    return torch.einsum("abc,ai,bj,ck->ijk", values, *bases)
