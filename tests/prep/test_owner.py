"""Who may pack into a folder at the same time: parts, killed processes, and processes of other hosts."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prep import owner
from prep.owner import owning
from prep.part import PackingShare
from relic.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_DEAD_SECONDS", 0.5)
    monkeypatch.setattr(owner, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(owner, "_BEAT_SECONDS", 0.05)


def join(folder: Path, text: str = "0/1", splits: tuple[str, ...] = ("train",)) -> Any:
    number, of = map(int, text.split("/"))
    return owning(folder, PackingShare(number, of), splits, lambda shared: None)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def foreign(folder: Path, text: str = "0/1", split: str = "train") -> Path:
    """The file of a process of another host, whose lock is not seen here."""
    path = folder / f"{split}.{'f' * 16}.owner"
    part = [int(number) for number in text.split("/")]
    path.write_text(json.dumps({"host": "node7", "pid": 77, "machine": "another", "part": part}))
    return path


@pytest.fixture
def touching() -> Iterator[Callable[[Path], None]]:
    """A function after which a file is touched again and again, as by a process that lives."""
    ended = threading.Event()
    threads = []

    def begin(path: Path) -> None:
        def touch() -> None:
            while not ended.wait(0.05):
                os.utime(path)

        threads.append(threading.Thread(target=touch))
        threads[-1].start()

    yield begin
    ended.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("0/1", "0/1", "wait until it has ended"),
        ("1/4", "0/1", "part 1/4 is packing into it; wait"),
        ("0/1", "0/4", "is packing into it; give each process an I of its own"),
        ("1/4", "1/4", "part 1/4 is packing into it; give each"),
        ("1/4", "1/3", "part 1/4 is packing"),
        ("1/4", "2/4", ""),
    ],
)
def test_who_may_pack_at_once(tmp_path: Path, first: str, second: str, message: str) -> None:
    begun: list[bool] = []
    with join(tmp_path, first):
        before = names(tmp_path)
        if message:
            with pytest.raises(InputError, match=re.escape(f"--out_dir {tmp_path}: process {os.getpid()} of")) as found:
                join(tmp_path, second).__enter__()
            assert message in str(found.value)
            assert names(tmp_path) == before
        else:
            with owning(tmp_path, PackingShare(2, 4), ["train"], begun.append):
                assert len(names(tmp_path)) == 2
            assert begun == [True]
    assert not names(tmp_path)
    with owning(tmp_path, PackingShare(), ["train"], begun.append):
        assert begun[-1] is False


def test_a_killed_process_of_this_machine_is_seen_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_DEAD_SECONDS", 1e6)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from prep.owner import owning; from prep.part import PackingShare\n"
        "with owning(Path(sys.argv[1]), PackingShare(), ['train'], lambda shared: None):\n"
        "    print('joined', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"joined\n"
    with pytest.raises(InputError, match=f"process {process.pid} of"):
        join(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(names(tmp_path)) == 1
    with join(tmp_path):
        assert len(names(tmp_path)) == 1
    assert not names(tmp_path)


def test_a_process_touches_its_files(tmp_path: Path) -> None:
    with join(tmp_path, splits=("train", "val")):
        first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        while any(path.stat().st_mtime_ns == stamp for path, stamp in first.items()):
            time.sleep(0.01)
        assert sorted(path.name.split(".")[0] for path in first) == ["train", "val"]


def test_a_process_of_another_host_is_watched(tmp_path: Path, touching: Callable[[Path], None]) -> None:
    other = foreign(tmp_path)
    touching(other)
    with pytest.raises(InputError, match="process 77 of node7 is packing into it; wait until it has ended"):
        join(tmp_path).__enter__()
    assert names(tmp_path) == [other.name]


def test_a_dead_process_of_another_host_is_not_waited_for_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path)
    with caplog.at_level("INFO"), join(tmp_path):
        assert "waiting up to 0 seconds for a sign of process 77 of node7" in caplog.text.replace("0.5", "0")
        assert len(names(tmp_path)) == 1
        monkeypatch.setattr(owner, "_DEAD_SECONDS", 1e6)
    assert not names(tmp_path)


def test_without_locks_a_process_of_this_machine_is_watched(
    tmp_path: Path, touching: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> bool:
        raise OSError(38, "no locks")

    monkeypatch.setattr("relic.lock.lock_descriptor", no_locks)
    with join(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} of"):
        join(tmp_path).__enter__()
    path = tmp_path / f"train.{'a' * 16}.owner"
    path.write_text(json.dumps({"host": "here", "pid": 1, "machine": owner._machine(), "part": [0, 1]}))
    with join(tmp_path):
        assert not path.exists()


def test_the_last_part_of_a_split_knows_it(tmp_path: Path, touching: Callable[[Path], None]) -> None:
    splits = ("train", "val")
    with join(tmp_path, "0/2", splits) as first, join(tmp_path, "1/2", splits) as second:
        for split, last in (("train", second), ("val", first)):
            with (first if last is second else second).leaving(split) as others:
                assert others()
            with last.leaving(split) as others:
                assert not others()
    assert not names(tmp_path)
    with join(tmp_path, "0/3", ("val",)) as one:
        touching(foreign(tmp_path, "1/3", "val"))
        with one.leaving("val") as others:
            assert others()


def test_a_file_that_says_nothing_goes_with_no_part(tmp_path: Path) -> None:
    (tmp_path / f"train.{'0' * 16}.owner").write_text("{")
    (tmp_path / "my.owner").write_text("mine")
    with join(tmp_path, "0/4"):
        assert "my.owner" in names(tmp_path)
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["my.owner"]
