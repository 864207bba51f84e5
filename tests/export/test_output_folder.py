"""What an export that was killed left is removed by the next one; what is in use, or not ours, stays."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from export.output_folder import staged_output

ROOT = Path(__file__).resolve().parents[2]
HOLDS = """
import sys, tempfile, time
from pathlib import Path
from export.output_folder import staged_output
with staged_output(Path(sys.argv[1])) as staging:
    (staging / "part").write_text("x")
    temporary = tempfile.TemporaryDirectory()  # as torch and onnxruntime make them
    (Path(temporary.name) / "large").write_text("x")
    print(staging, flush=True)
    time.sleep(60)
"""


def begun(folder: Path, **environment: str) -> tuple["subprocess.Popen[str]", Path]:
    """A process in the middle of an export, and its temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path, exists: bool) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    if exists:
        out.mkdir()
    process, left = begun(out, TMPDIR=str(temporary))
    process.kill()
    process.communicate()
    assert (left / "part").exists()
    out.mkdir(exist_ok=True)
    before = tempfile.gettempdir()
    with staged_output(out) as staging:
        (staging / "new").write_text("y")
        assert Path(tempfile.gettempdir()).parent == staging
    assert tempfile.gettempdir() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out", "tmp"]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    process, used = begun(tmp_path)
    with staged_output(tmp_path) as staging:
        (staging / "new").write_text("y")
    assert (used / "part").exists() and (tmp_path / "new").exists()
    process.terminate()
    errors = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_other_names_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("z")
    os.symlink(tmp_path / "mine", tmp_path / ".relic-export-link")
    os.mkfifo(tmp_path / ".relic-export-fifo")
    with staged_output(tmp_path):
        pass
    assert (tmp_path / "mine" / "precious").exists() and (tmp_path / ".relic-export-link").is_symlink()


def test_the_signal_s_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with staged_output(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
