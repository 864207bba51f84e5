"""Copy batches from host memory to the device, one batch ahead of the computation, as float images."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from relic.loader.loader import HOLD, Batch


class DeviceBatch(NamedTuple):
    """Images on the device, as `convert` made them, and their keys."""

    images: Tensor
    keys: list[str]


def feed_device(
    batches: Iterable[Batch], device: torch.device, convert: Callable[[Tensor], Tensor]
) -> Iterator[DeviceBatch]:
    """Yield each batch on `device` after `convert` (uint8 (B, H, W, 3) -> what the model takes).

    On CUDA a side stream copies the uint8 images while the batch before is computed. `convert` runs on the consumer's
    stream. The loader keeps the last `HOLD` batches intact, and may refill older ones. So before a further batch is
    requested, the copy of the batch that becomes free is waited for. When the iterator ends, or is closed, no copy is
    under way.
    """
    if device.type != "cuda":
        for batch in batches:
            yield DeviceBatch(convert(batch.images.to(device)), batch.keys)
        return
    copies: deque[torch.cuda.Event] = deque()
    try:
        yield from _fed(iter(batches), device, convert, copies)
    finally:
        for copied in copies:
            copied.synchronize()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all copies to `device`: torch keeps freed memory for each stream that used it."""
    return torch.cuda.Stream(device)


def _fed(
    batches: Iterator[Batch],
    device: torch.device,
    convert: Callable[[Tensor], Tensor],
    copies: deque[torch.cuda.Event],
) -> Iterator[DeviceBatch]:
    """Yield each batch on `device`. `copies` holds the events of the copies that were begun and not waited for."""
    side = _side_stream(device)
    ahead: tuple[Tensor, list[str], torch.cuda.Event] | None = None
    more = True
    while more:
        if len(copies) == HOLD:
            copies.popleft().synchronize()
        coming = next(batches, None)
        more, ready, ahead = coming is not None, ahead, None
        if coming is not None:
            with torch.cuda.stream(side):
                images = coming.images.to(device, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(side)
            copies.append(copied)
            ahead = images, coming.keys, copied
        if ready is not None:
            images, keys, copied = ready
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            # Keeps the allocator from giving this memory to the side stream while this stream still reads it.
            images.record_stream(current)
            yield DeviceBatch(convert(images), keys)
