"""Stop all ranks at the same step: at the first value that is not finite or over a limit, or after a signal."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from relic.distributed import World, max_over_ranks

_KEYS_SHOWN = 16
WAYS_OUT = (
    "the last checkpoint is from before it. Ways out: --amp_dtype bf16, a wider --local_fp32 (entropy+decoder, "
    "all_normexp), a lower --lr, a smaller --max_grad_norm, a longer --lr_warmup_steps"
)


class DivergedError(RuntimeError):
    """A forward value was not finite or over the limit. No checkpoint was written after it."""


class StopRequested(Exception):
    """A signal asked the run to save and end. Every rank raises it at the same step."""


class Guard:
    """Checks the tensors of each step without waiting for the device.

    `watch` reduces the tensors to flags on the device, starts to copy the flags to the host, and checks the flags of
    the step before. `settle` checks the flags of the last step. When DivergedError is raised, the optimizer has already
    used the bad values: the weights in memory are bad, and the last checkpoint is from before.

    The flags are the maximum over all ranks, so all ranks stop together. A signal sets one more flag in the same
    all-reduce. Then every rank raises StopRequested at the same step, with good weights.
    """

    def __init__(self, world: World, *, limit: float, check_values: bool) -> None:
        self._world = world
        self._limit = limit
        self._check_values = check_values
        self._pending: tuple[Tensor, int, list[str], Sequence[str], torch.cuda.Event | None] | None = None
        self.stop = False
        """Set by a signal handler."""

    @torch.no_grad()
    def request_stop(self) -> None:
        """Stop the run on all ranks after the current step."""
        self.stop = True

    def watch(self, step: int, tensors: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        """Start to check the tensors of step `step`, whose batch holds `keys`. Raises for the step before."""
        flags = torch.full((1,), float(self.stop), device=self._world.device)
        if self._check_values:
            # Both ends are NaN if any element is NaN.
            ends = torch.stack([end.float() for each in tensors.values() for end in torch.aminmax(each.detach())])
            within = (ends.abs() <= self._limit).view(-1, 2).all(1)
            flags = torch.cat([flags, (~within).float()])
        on_host, copied = _copy_to_host(max_over_ranks(flags, self._world))
        before, self._pending = self._pending, (on_host, step, list(tensors), list(keys), copied)
        self._check(before)

    def settle(self) -> None:
        """Check the last step's flags. Called before anything is saved."""
        before, self._pending = self._pending, None
        self._check(before)

    def check_weights(self, parameters: Iterable[Tensor], step: int) -> None:
        """Raise DivergedError if a weight after step `step` is not finite or over the limit."""
        if not self._check_values:
            return
        largest = torch.stack([parameter.detach().abs().amax() for parameter in parameters]).max()
        # A comparison with NaN is false, so NaN is refused too.
        if not bool(largest <= self._limit):
            raise DivergedError(f"step {step}: the weights after it are not finite or over the limit; {WAYS_OUT}")

    def _check(self, watched: tuple[Tensor, int, list[str], Sequence[str], torch.cuda.Event | None] | None) -> None:
        if watched is None:
            return
        on_host, step, names, keys, copied = watched
        if copied is not None:
            copied.synchronize()
        stop, *bad = on_host.tolist()
        wrong = [name for name, flag in zip(names, bad, strict=False) if flag]
        if wrong:
            batch = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
            what = f"{wrong[0]} is not finite or over {self._limit:g} (images of this rank: {batch})"
            raise DivergedError(f"step {step}: {what}; {WAYS_OUT}")
        if stop:
            self._pending = None
            raise StopRequested


def _copy_to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if flags.device.type != "cuda":
        return flags, None
    on_host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    on_host.copy_(flags, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied
