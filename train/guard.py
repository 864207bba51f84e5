"""Stop at the first value that is not finite or over a limit, and when a signal asks for it: all ranks at one step."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from relic.distributed import World, max_over_ranks

_KEYS_SHOWN = 16
WAYS_OUT = (
    "the last checkpoint is from before. Ways out: --amp_dtype bf16, a wider --local_fp32 (entropy+decoder, "
    "all_normexp), a lower --lr, a smaller --max_grad_norm, a longer --lr_warmup_steps"
)


class DivergedError(RuntimeError):
    """A forward value was not finite or over the limit. No checkpoint was written after it."""


class StopRequested(Exception):
    """A signal asked the run to save and end; every rank sees it at the same step."""


class Guard:
    """Watches the tensors of a step without waiting for the device.

    `watch` reduces them to flags on the device, starts the flags' copy to the host, and looks at those of the step
    before; `settle` looks at what is left. When it raises DivergedError the optimizer has already used the bad values:
    the weights in memory are spoilt, and the last checkpoint is from before.

    Flags are the maximum over all ranks, so ranks stop together. A stop that a signal asked for is one more flag of the
    same all-reduce: it raises StopRequested on every rank at the same step, and there the weights are good.
    """

    def __init__(self, world: World, *, limit: float, check_values: bool) -> None:
        self._world = world
        self._limit = limit
        self._check_values = check_values
        self._pending: tuple[Tensor, int, list[str], Sequence[str], torch.cuda.Event | None] | None = None
        self.stop = False
        """Set by a signal handler."""

    @torch.no_grad()
    def watch(self, step: int, tensors: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        """Take in the tensors of step `step`, whose batch holds `keys`. Raises for what the step before showed."""
        flags = [torch.full((), float(self.stop), device=self._world.device)]
        if self._check_values:
            # Largest magnitude: not a number if any element is not, infinite if any is.
            largest = [tensor.detach().abs().amax().float() for tensor in tensors.values()]
            flags += [(~(value <= self._limit)).float() for value in largest]
        flags_on_device = max_over_ranks(torch.stack(flags), self._world)
        on_host, copied = _copy_to_host(flags_on_device)
        before, self._pending = self._pending, (on_host, step, list(tensors), list(keys), copied)
        self._look(before)

    def settle(self) -> None:
        """Look at the last step's flags too: called before anything is saved."""
        before, self._pending = self._pending, None
        self._look(before)

    def check_weights(self, parameters: Iterable[Tensor], step: int) -> None:
        """Raise DivergedError when step `step` left weights that no forward pass can be made with."""
        if not self._check_values:
            return
        largest = torch.stack([parameter.detach().abs().amax() for parameter in parameters]).max()
        # Not a number compares as false, so it is refused too.
        if not bool(largest <= self._limit):
            raise DivergedError(f"step {step}: it left weights not finite or over the limit; {WAYS_OUT}")

    def _look(self, watched: tuple[Tensor, int, list[str], Sequence[str], torch.cuda.Event | None] | None) -> None:
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
