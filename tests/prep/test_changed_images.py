"""Images that change after or while they are packed, also without a change of their length."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prep.make_shards import main
from prep.shard_worker import pack_shard
from relic.shards.index import index_path, read_records
from relic.shards.shard_set import open_shard_set, plan_path


def draw(path: Path, level: int) -> None:
    """A BMP: all have the same length."""
    Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "coco" / "train2017"
    folder.mkdir(parents=True)
    for number in range(6):
        draw(folder / f"{number}.bmp", 10 * number)
    return folder


@pytest.fixture(autouse=True)
def _here(tasks_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.comparing._MARGIN_NS", 0)


def run(tmp_path: Path, *flags: str) -> int:
    fixed = ("--size", "32", "--samples_per_shard", "3", "--include_val", "false", "--workers", "1", *flags)
    return main(["--coco_dir", str(tmp_path / "coco"), "--out_dir", str(tmp_path / "out"), *fixed])


def level_of(tmp_path: Path, number: int) -> int:
    tar = tmp_path / "out" / f"train-{number // 3:06d}.tar"
    record = read_records(index_path(tar))[number % 3]
    return tar.read_bytes()[int(record["offset"] + record["size"]) - 1]


def age(folder: Path) -> None:
    """Set the times of the shards back, so that what is written now is later on any file system."""
    for path in folder.glob("train-*"):
        os.utime(path, ns=(time.time_ns() - 10**10,) * 2)


def test_a_change_at_equal_length_is_refused_and_overwrite_packs_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    status = (images / "4.bmp").stat()
    draw(images / "4.bmp", 200)
    os.utime(images / "4.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync and cp -p do
    capsys.readouterr()
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert "1 of the train images changed since they were packed" in error
    assert "4.bmp'; use another --out_dir, or --overwrite" in error
    assert level_of(tmp_path, 4) == 40
    assert run(tmp_path, "--overwrite") == 0
    assert level_of(tmp_path, 4) == 200
    assert run(tmp_path) == 0


def test_images_that_were_copied_are_compared_and_are_the_same(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "5.bmp").write_bytes(b"bad")
    assert run(tmp_path, "--max_bad", "1") == 0
    age(tmp_path / "out")
    shutil.copytree(images, tmp_path / "copy")
    shutil.rmtree(images)
    (tmp_path / "copy").rename(images)
    before = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    for _ in range(2):
        assert run(tmp_path, "--max_bad", "1") == 0
        assert "already packed" in capsys.readouterr().out
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns > before  # compared once
    (images / "5.bmp").write_bytes(b"BAD")
    assert run(tmp_path, "--max_bad", "1") == 0
    draw(images / "3.bmp", 0)
    (images / "3.bmp").write_bytes(b"x" * (images / "3.bmp").stat().st_size)
    assert run(tmp_path, "--max_bad", "1") == 1


def test_a_link_to_another_image_is_a_change(images: Path, tmp_path: Path) -> None:
    for name, level in (("one", 10), ("two", 250)):
        draw(tmp_path / f"{name}.bmp", level)
    (images / "0.bmp").unlink()
    (images / "0.bmp").symlink_to(tmp_path / "one.bmp")
    assert run(tmp_path) == 0
    (images / "0.bmp").unlink()
    (images / "0.bmp").symlink_to(tmp_path / "two.bmp")
    assert run(tmp_path) == 1


def test_a_stopped_run_packs_the_shards_of_changed_images_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pack_shard

    def stop(task: object, report: object) -> object:
        if getattr(task, "shard", 0) == 1:
            raise KeyboardInterrupt
        return pack(task, report)  # type: ignore[arg-type]

    monkeypatch.setattr("prep.packing.pack_shard", stop)
    assert run(tmp_path) == 130
    assert (tmp_path / "out" / "train-000000.tar").exists()
    monkeypatch.setattr("prep.packing.pack_shard", pack)
    draw(images / "1.bmp", 99)
    assert run(tmp_path) == 0
    assert level_of(tmp_path, 1) == 99
    assert open_shard_set(tmp_path / "out", "train").num_samples == 6


def test_an_image_that_changes_while_it_is_packed_is_packed_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, levels = pack_shard, iter([77])

    def change(task: object, report: object) -> object:
        record = pack(task, report)  # type: ignore[arg-type]
        for level in levels:
            draw(images / "0.bmp", level)
            break
        return record

    monkeypatch.setattr("prep.packing.pack_shard", change)
    assert run(tmp_path) == 0
    assert level_of(tmp_path, 0) == 77
    levels = iter(range(100, 200))
    assert run(tmp_path, "--size", "16", "--overwrite") == 1
    assert "0.bmp': changes while it is packed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.json").exists()
    assert plan_path(tmp_path / "out", "train").exists()


def test_a_length_that_changes_while_it_is_packed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = pack_shard

    def grow(task: object, report: object) -> object:
        with (images / "0.bmp").open("ab") as file:
            file.write(b"x")
        return pack(task, report)  # type: ignore[arg-type]

    monkeypatch.setattr("prep.packing.pack_shard", grow)
    assert run(tmp_path) == 1
    assert "changed while it was packed; run the command again\n" in capsys.readouterr().err
    monkeypatch.setattr("prep.packing.pack_shard", pack)
    assert run(tmp_path) == 0  # nothing was finished, so there is nothing to overwrite


def test_crops_of_this_set(images: Path, tmp_path: Path) -> None:
    """The levels that the other tests look for."""
    assert run(tmp_path) == 0
    levels: NDArray[np.int64] = np.array([level_of(tmp_path, number) for number in range(6)])
    np.testing.assert_array_equal(levels, 10 * np.arange(6))
