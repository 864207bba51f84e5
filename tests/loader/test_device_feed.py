"""The CUDA side of the device feed: fake streams and events record what is asked of them, in order."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from relic.loader import device_feed
from relic.loader.device_feed import feed_device
from relic.loader.loader import HOLD, Batch


class FakeCuda:
    """Records operations; a copy has completed only once its event was waited for."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.stream_now = "main"

    def Stream(self, device: Any) -> str:
        self.log.append(("new stream", device))
        return "side"

    def Event(self) -> "FakeEvent":
        return FakeEvent(self)

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def current_stream(self, device: Any) -> "FakeStream":
        return FakeStream(self, self.stream_now)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_event(self, event: "FakeEvent") -> None:
        self.cuda.log.append((f"{self.name} waits", event.number))


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.number = cuda, -1

    def record(self, stream: str) -> None:
        self.number = next(n for what, n in reversed(self.cuda.log) if what == "copy on side")
        assert stream == "side"

    def synchronize(self) -> None:
        self.cuda.log.append(("host waits", self.number))


class FakeImages:
    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self.cuda, self.number = cuda, number

    def to(self, device: Any, non_blocking: bool) -> "FakeImages":
        assert non_blocking
        self.cuda.log.append((f"copy on {self.cuda.stream_now}", self.number))
        return self

    def record_stream(self, stream: FakeStream) -> None:
        self.cuda.log.append((f"{stream.name} keeps", self.number))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    device_feed._side_stream.cache_clear()
    yield fake
    device_feed._side_stream.cache_clear()


def feed(cuda: FakeCuda, count: int) -> Iterator[Any]:
    """Feed `count` fake batches. `convert` returns the number of the batch."""

    def loader() -> Iterator[Batch]:
        for number in range(count):
            cuda.log.append(("asked", number))
            yield Batch(FakeImages(cuda, number), [str(number)])  # type: ignore[arg-type]
        cuda.log.append(("asked", count))

    def convert(images: Any) -> int:
        cuda.log.append((f"convert on {cuda.stream_now}", images.number))
        return int(images.number)

    return feed_device(loader(), torch.device("cuda", 0), convert)  # type: ignore[arg-type]


def test_streams_and_events_guard_pinned_rows_and_device_memory(cuda: FakeCuda) -> None:
    count = 7
    seen: list[Any] = []
    for batch in feed(cuda, count):
        cuda.log.append(("compute", batch.images))
        seen.append((batch.images, batch.keys))
    assert seen == [(number, [str(number)]) for number in range(count)]
    place = {entry: at for at, entry in enumerate(cuda.log)}
    for number in range(count):
        assert place["copy on side", number] < place["main waits", number] < place["convert on main", number]
        assert place["main keeps", number] < place["compute", number]
        if number + 1 < count:
            assert place["copy on side", number + 1] < place["compute", number]
        # Asking for batch n + HOLD frees batch n's pinned row: its copy must have completed.
        if number + HOLD <= count:
            assert place["host waits", number] < place["asked", number + HOLD]


@pytest.mark.parametrize("taken", [1, 4, 7, None], ids=["closed at once", "closed", "closed at its end", "ended"])
def test_no_copy_is_under_way_after_the_feed(cuda: FakeCuda, taken: int | None) -> None:
    """The loader fills its ring again as soon as another iterator asks it to."""
    batches = feed(cuda, 7)
    for _ in itertools.islice(batches, taken):
        pass
    batches.close()  # type: ignore[attr-defined]
    begun, waited = ({number for what, number in cuda.log if what == said} for said in ("copy on side", "host waits"))
    assert begun == waited and len(begun) == min(7, (taken or 7) + 1)


def test_all_feeds_of_a_device_share_a_stream(cuda: FakeCuda) -> None:
    """The allocator keeps the memory of each stream apart: 32 streams would keep the batches of 32 feeds."""
    for _ in range(3):
        assert len(list(feed(cuda, 3))) == 3
    assert [what for what, _ in cuda.log].count("new stream") == 1
