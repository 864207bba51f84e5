"""Small COCO-like folders, and helpers for the tests of prep."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from prep.engine import Finished, RunningItems
from tests.conftest import photograph


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a folder in COCO's layout with `train` and `val` JPEGs of `width` x `height`."""

    def build(train: int = 9, val: int = 3, width: int = 120, height: int = 90, name: str = "coco") -> Path:
        for split, count in (("train2017", train), ("val2017", val)):
            folder = tmp_path / name / split
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = photograph(width, height, seed=number + 1000 * (split == "val2017"))
                Image.fromarray(pixels).save(folder / f"{number:012d}.jpg", quality=92)
        return tmp_path / name

    return build


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """A function that gives the sha256 of every file in a folder."""

    def read(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

    return read


@pytest.fixture
def tasks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks in this process: starting workers takes most of the time."""

    def run_here(work: Callable[..., object], tasks: list[object], **options: object) -> Iterator[object]:
        for task in tasks:
            yield RunningItems(0)
            yield Finished(task, work(task, lambda item: None))

    monkeypatch.setattr("prep.pool.run_tasks", run_here)
