"""The CUDA side of the device feed: fake streams and events record what is asked of them, in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from relic.loader.device_feed import feed_device
from relic.loader.loader import HOLD, Batch


class FakeCuda:
    """Records operations; a copy has completed only once its event was waited for."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.stream_now = "main"

    def Stream(self, device: Any) -> str:
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


def test_streams_and_events_guard_pinned_rows_and_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    count = 7

    def loader() -> Iterator[Batch]:
        for number in range(count):
            cuda.log.append(("asked", number))
            yield Batch(FakeImages(cuda, number), [str(number)])  # type: ignore[arg-type]
        cuda.log.append(("asked", count))

    def convert(images: Any) -> int:
        cuda.log.append((f"convert on {cuda.stream_now}", images.number))
        return int(images.number)

    seen: list[Any] = []
    for batch in feed_device(loader(), torch.device("cuda", 0), convert):  # type: ignore[arg-type]
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
