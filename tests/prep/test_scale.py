"""What must not grow with the data set: a worker's memory, and the work per file before packing begins."""

import builtins
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from prep import planning
from prep.config import PrepConfig
from prep.planning import plan_splits
from relic.errors import InputError
from relic.files import write_json
from relic.shards.manifest import MOST_MANIFEST_BYTES, MOST_SHARDS

COMMAND = (sys.executable, str(Path(__file__).resolve().parents[2] / "prep" / "make_shards.py"))


def peak_megabytes(coco: Path, out: Path) -> float:
    """Peak resident memory of the only worker of a run, read from the kernel while it runs."""
    flags = ("--include_val", "false", "--workers", "1", "--samples_per_shard", "10000")
    process = subprocess.Popen([*COMMAND, "--coco_dir", str(coco), "--out_dir", str(out), *flags])
    peaks = []
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess, OSError, StopIteration):
            worker = next(c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline()))
            lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
        time.sleep(0.005)
    assert process.returncode == 0
    return max(peaks)


@pytest.mark.commands
def test_a_worker_stays_small_whatever_the_number_of_images(
    make_photograph: Callable[[int, int, int], NDArray[Any]], tmp_path: Path
) -> None:
    Image.fromarray(make_photograph(640, 480, 1)).save(tmp_path / "one.jpg", quality=92)
    peaks = []
    for count in (100, 1000):
        folder = tmp_path / str(count) / "train2017"
        folder.mkdir(parents=True)
        for number in range(count):
            os.link(tmp_path / "one.jpg", folder / f"{number:012d}.jpg")
        peaks.append(peak_megabytes(folder.parent, tmp_path / f"out{count}"))
    assert peaks[1] < 250
    assert peaks[1] - peaks[0] < 25, peaks  # 900 more crops are 135 MB


class CountingEntry:
    """A directory entry that counts its system calls."""

    def __init__(self, entry: "os.DirEntry[str]", calls: "Counter[str]") -> None:
        self.name, self.path, self._entry, self._calls = entry.name, entry.path, entry, calls

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._entry.is_dir(follow_symlinks=follow_symlinks)  # known from the listing, without a system call

    def stat(self) -> os.stat_result:
        self._calls["stat"] += 1
        return self._entry.stat()


class CountingScan:
    def __init__(self, folder: str, calls: "Counter[str]") -> None:
        self._scan, self._calls = REAL_SCANDIR(folder), calls
        calls["scandir"] += 1

    def __enter__(self) -> Iterator[CountingEntry]:
        return (CountingEntry(entry, self._calls) for entry in self._scan)

    def __exit__(self, *error: object) -> None:
        self._scan.close()


REAL_SCANDIR = os.scandir


def test_planning_asks_one_stat_a_file_and_opens_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "train2017"
    (folder / "deeper").mkdir(parents=True)
    for number in range(300):
        (folder / ("deeper" if number % 2 else ".") / f"{number}.jpg").write_bytes(b"x")
        (folder / f"{number}.txt").touch()
    config = PrepConfig(tmp_path, tmp_path / "out", include_val=False)
    calls: Counter[str] = Counter()

    def no_open(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(os, "scandir", lambda path: CountingScan(path, calls))
    monkeypatch.setattr(os, "open", no_open)
    monkeypatch.setattr(builtins, "open", no_open)
    (plan,) = plan_splits(config)
    assert plan.images == 300
    assert calls == {"scandir": 2, "stat": 300}


def test_more_shards_than_a_manifest_can_hold_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = {"name": "train-999999.tar", "samples": 10**6, "bytes": 10**12, "sha256": "0" * 64}
    write_json(tmp_path / "x.json", {"shards": [largest] * 1000})
    assert (tmp_path / "x.json").stat().st_size / 1000 * MOST_SHARDS <= MOST_MANIFEST_BYTES
    (tmp_path / "train2017").mkdir()
    for number in range(25):
        (tmp_path / "train2017" / f"{number}.jpg").write_bytes(b"x")
    config = PrepConfig(
        tmp_path, tmp_path / "out", include_val=False, crop="random", crops_per_image=2, samples_per_shard=4
    )
    monkeypatch.setattr(planning, "MOST_SHARDS", 12)
    message = "--samples_per_shard 4: 13 shards for 25 images, a set has at most 12; give 6 or more"
    with pytest.raises(InputError, match=message):
        plan_splits(config)
    (plan,) = plan_splits(dataclasses.replace(config, samples_per_shard=6))
    assert len(plan.tasks) == 9
