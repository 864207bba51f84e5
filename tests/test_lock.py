"""The lock between processes: on files that cannot be written, on folders, and where locks do not work."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import relic.lock
from relic.errors import InputError
from relic.lock import lock

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys
from pathlib import Path
from relic.lock import lock
with lock(Path(sys.argv[1]), create=sys.argv[2] == "create") as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "tar", "lock file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "tar":
        (tmp_path / "x.tar").write_bytes(b"data")
        (tmp_path / "x.tar").chmod(0o444)
    return {"folder": tmp_path, "tar": tmp_path / "x.tar", "lock file": tmp_path / "x.lock"}[request.param]


@pytest.fixture
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of `path`."""
    command = [sys.executable, "-c", HOLD, str(path), "create" if path.suffix == ".lock" else ""]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_lock_is_held_once_and_ends_with_a_killed_process(path: Path, holder: "subprocess.Popen[str]") -> None:
    files = list(path.parent.iterdir())
    for wait_seconds in (0, 0.1):
        with lock(path, wait_seconds=wait_seconds) as held:
            assert not held
    holder.kill()
    with lock(path) as held:  # waits until the process has ended
        assert held
        with lock(path, wait_seconds=0) as again:
            assert not again
    with lock(path, wait_seconds=0) as held:
        assert held
    assert list(path.parent.iterdir()) == files


def test_who_is_waited_for_is_said(
    path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relic.lock, "_FIRST_WORD_SECONDS", 0.0)
    caplog.set_level("INFO")
    with lock(path, wait_seconds=0.1) as held:
        assert not held
    (line,) = caplog.messages
    assert line.startswith(f"{path}: waiting for ")
    assert f"process {holder.pid} (" in line or "another process" in line


@pytest.mark.timeout(5)
def test_a_link_or_a_pipe_in_the_place_of_a_lock_file(tmp_path: Path) -> None:
    (tmp_path / "x.lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"x\.lock"), lock(tmp_path / "x.lock", create=True):
        pass
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "pipe")
    with lock(tmp_path / "pipe") as held:
        assert held


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with lock(tmp_path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] * 4


def test_without_locks_the_block_runs_or_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(relic.lock, "lock_descriptor", refuse)
    with lock(tmp_path) as held:
        assert held
    with (
        pytest.raises(InputError, match=r"x\.lock: cannot be locked \(No locks available\); use a local disk"),
        lock(tmp_path / "x.lock", create=True, advice="use a local disk"),
    ):
        pass
