"""The feed on a device: batches reach the model as they were, and its memory is used again."""

from collections.abc import Iterator

import pytest
import torch

from relic.codec.pixels import to_float
from relic.loader.device_feed import feed_device
from relic.loader.loader import HOLD, Batch
from tests.cuda.devices import CUDA, both_devices


def ring(count: int, device: torch.device, side: int = 224, images: int = 64) -> Iterator[Batch]:
    """A loader that spoils what it may: a batch is overwritten with 255 when it is free, and then filled again."""
    pinned = device.type == "cuda"
    buffers = [torch.empty(images, side, side, 3, dtype=torch.uint8, pin_memory=pinned) for _ in range(HOLD + 3)]
    for number in range(count):
        if number >= HOLD:
            buffers[(number - HOLD) % len(buffers)].fill_(255)
        buffers[number % len(buffers)].fill_(number % 200)
        yield Batch(buffers[number % len(buffers)], [str(number)])


@both_devices
@pytest.mark.parametrize("slow", [False, True], ids=["", "slow consumer"])
def test_no_batch_is_overwritten_on_its_way(device: torch.device, slow: bool) -> None:
    """Fails if rows are filled before their copy, or device memory is used again before `convert` has read it."""
    on_cuda = device.type == "cuda"
    count, side = (200, 224) if on_cuda else (12, 32)
    extremes = []
    for batch in feed_device(ring(count, device, side), device, to_float):
        if slow and on_cuda:
            torch.cuda._sleep(20_000_000)  # some 10 ms: this stream falls behind the side stream
        extremes.append(torch.stack([batch.images.amin(), batch.images.amax()]))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    low, high = torch.stack(extremes).mul(255).round().long().T.tolist()
    assert low == high == [number % 200 for number in range(count)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_memory_does_not_grow_from_feed_to_feed() -> None:
    def reserved() -> int:
        for batch in feed_device(ring(8, CUDA), CUDA, to_float):
            batch.images.sum()
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    reserved()
    before = reserved()
    assert max(reserved() for _ in range(12)) <= before + (1 << 20)  # a stream per feed would keep a pool of its own
