"""One image may neither take for ever nor end the run without its name."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from prep.images import LocalImages
from prep.shard_worker import pack_shard
from prep.tasks import KeyedSource, ShardTask
from relic.errors import InputError
from relic.pictures.listing import list_sources
from tests.conftest import a_packing


def task_of_one(folder: Path) -> ShardTask:
    (folder / "images").mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "images" / "a.png")
    packing = a_packing(width=32, height=32, samples_per_shard=10, sources_sha256="")
    sources = tuple(KeyedSource(source, "a") for source in list_sources(folder / "images"))
    return ShardTask(shard=0, sources=sources, images=LocalImages(folder / "images"), out_dir=folder, packing=packing)


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The alarms that are set, instead of setting them."""
    found: list[int] = []
    monkeypatch.setattr(signal, "alarm", found.append)
    return found


def test_each_image_has_a_time_limit(tmp_path: Path, alarms: list[int]) -> None:
    task = task_of_one(tmp_path)
    record = pack_shard(task, lambda number: None)
    assert record.rejected == ()
    assert alarms == [600, 0]


def test_without_memory_the_run_ends_with_the_image_s_name(
    tmp_path: Path, alarms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("prep.shard_worker.decode", fail)
    with pytest.raises(InputError, match=r"a\.png.*out of memory.*fewer --workers"):
        pack_shard(task_of_one(tmp_path), lambda number: None)
    assert alarms == [600, 0]
