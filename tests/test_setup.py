"""setup.sh chooses a Python; `uv` and the Pythons are stand-ins on PATH, and nothing is installed."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _find_python(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "dirname").symlink_to("/usr/bin/dirname")
    return subprocess.run(
        ["/bin/bash", "-c", f"source {ROOT}/setup.sh && find_python"],
        capture_output=True,
        text=True,
        env={"PATH": str(folder)},
        timeout=20,
    )


def test_a_python_that_fits_is_taken(tmp_path: Path) -> None:
    done = _find_python(tmp_path, **{"python3": "exit 1", "python3.11": "exit 0", "uv": "exit 1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "python3.11\n", "")


def test_uv_gets_one_where_only_newer_ones_are(tmp_path: Path) -> None:
    done = _find_python(tmp_path, python3="exit 1", uv='[ "$2" = find ] && echo /uv/python3.12; exit 0')
    assert (done.returncode, done.stdout) == (0, "/uv/python3.12\n")
    assert done.stderr == "setup: no Python 3.11 or 3.12 here; getting Python 3.12 by uv\n"


def test_without_network_it_says_what_to_install(tmp_path: Path) -> None:
    done = _find_python(tmp_path, python3="exit 1", uv="exit 1")
    assert done.returncode == 1 and done.stdout == ""
    assert "install Python 3.11 or 3.12" in done.stderr.splitlines()[-1]
