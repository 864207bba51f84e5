"""Files that appear whole or not at all: links in the way, file systems without fsync, killed writers, pipes."""

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relic import files
from relic.cache import cache_folder
from relic.errors import InputError
from relic.files import (
    append_text,
    atomic_write,
    check_folder,
    open_regular,
    open_temporary,
    read_bounded,
    remove_temporaries,
    shown_path,
    sync_folder,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


def test_a_link_at_a_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f"x.{'0' * 16}.tmp").symlink_to("mine")
    with pytest.raises(FileExistsError, match="x"):
        open_temporary(tmp_path / "x")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "x"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x", "w") as first, atomic_write(tmp_path / "x", "w") as second:
        first.write("first é")
        second.write("second")
    assert (tmp_path / "x").read_bytes() == "first é".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o400


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for number, hours in enumerate((2, 0)):
        left = tmp_path / f"x.{number:016x}.tmp"
        left.touch()
        os.utime(left, (left.stat().st_mtime - 3600 * hours,) * 2)
    (tmp_path / "mine.tmp").touch()
    files._remove_abandoned.cache_clear()
    with atomic_write(tmp_path / "y"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp", f"x.{1:016x}.tmp", "y"]
    remove_temporaries(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp", "y"]


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.ENOTSUP])
def test_a_file_that_is_written_once_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def refuse(*_: object) -> None:
        assert code is not None
        raise OSError(code, "no links")

    if code is not None:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        with atomic_write(tmp_path / "x", "w", once=True) as file:
            file.write("one")
    with (
        pytest.raises(InputError, match="x: another process wrote it"),
        atomic_write(tmp_path / "x", once=True) as file,
    ):
        file.write(b"two")
    assert (tmp_path / "x").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, "not for folders")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_write(tmp_path / "x", "w") as file:
        file.write("text")
    assert (tmp_path / "x").read_text() == "text"


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}'"):
        sync_folder(tmp_path)


def test_a_full_disk_names_the_file_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = r"No space left on device; the file needs more than 5,000 bytes: '.*last\.pt'"
    with pytest.raises(OSError, match=said), atomic_write(tmp_path / "last.pt") as file:
        file.write(bytes(5000))
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_does_not_fit_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")  # as a file on a full disk
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"), append_text(path) as file:
        file.write("x")


@pytest.mark.timeout(5)
def test_pipes_are_not_waited_for_and_sizes_are_bounded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        open_regular(tmp_path)
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bounded(tmp_path / "x", 5) == b"12345"
    with pytest.raises(InputError, match="x: 5 bytes"):
        read_bounded(tmp_path / "x", 4)


def test_a_user_without_a_home_has_a_cache_of_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("~/.cache", name))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"relic-{os.getuid()}"
    assert cache_folder("shards") == folder / "shards"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        cache_folder("shards")


def test_a_path_that_is_not_utf8_can_be_written_to_a_report() -> None:
    assert shown_path(Path(os.fsdecode(b"/d\xe9/x"))) == r"/d\xe9/x"
    assert shown_path(Path("/dé/x")) == "/dé/x"


def test_json_files_hold_null_for_what_json_has_no_word_for(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"psnr_db": math.inf, "rest": [1, (math.nan, "inf"), None, 2.5]})

    def refuse(word: str) -> float:
        raise AssertionError(word)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"psnr_db": None, "rest": [1, [None, "inf"], None, 2.5]}


def test_sigterm_removes_a_temporary_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from relic.files import temporary_folder\n"
        "with temporary_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'part').write_text('x')\n"
        "    print(folder, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert (folder / "part").exists()
        process.terminate()
        errors = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM and errors == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that makes no folders")
def test_a_folder_that_cannot_be_made_is_refused_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--out /proc/x/y: /proc is not a folder that can be written to \(\w.*\)$"):
        check_folder("--out", Path("/proc/x/y"))
    check_folder("--out", tmp_path / "x" / "y")
    assert not list(tmp_path.iterdir())
