"""setup.sh finds or downloads a Python. Every program it calls is a fake, so nothing is installed or downloaded."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLD = "#!/bin/sh\nexit 1\n"
"""A Python of another version: the version check fails, and it cannot make a virtual environment."""
VENV = 'mkdir -p "$last/bin"; for name in python pip; do printf "#!/bin/sh\\nexit 0\\n" >"$last/bin/$name"; done; chmod +x "$last"/bin/*'  # noqa: E501
LAST = 'for last; do :; done; echo "$0 $*" >>"$CALLS"\n'
PYTHON_312 = f"#!/bin/sh\n{LAST}case $1 in -c) exit 0;; esac\n{VENV}\n"
UV = f"#!/bin/sh\n{LAST}{VENV}\n"
NEWER = (
    f"#!/bin/sh\n{LAST}case $1 in -c) exit 1;; esac\n"
    'mkdir -p "$last/bin"; cp "$STANDINS/pip-of-scratch" "$last/bin/pip"; chmod +x "$last/bin/pip"\n'
)
"""Python 3.13: only usable for a temporary environment with uv."""
PIP_WITH_UV = '#!/bin/sh\ncp "$STANDINS/hidden-uv" "$(dirname "$0")/uv"; chmod +x "$(dirname "$0")/uv"\n'


def set_up(folder: Path, programs: dict[str, str]) -> tuple[int, str, list[str]]:
    """Exit code, output, and the recorded calls of the fakes."""
    shutil.copy(ROOT / "setup.sh", folder)
    (folder / "requirements.txt").write_text("")
    stand_ins = folder / "stand-ins"
    stand_ins.mkdir()
    for name, text in ({"python3": OLD, "python3.12": OLD, "python3.11": OLD} | programs).items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    path = f"{stand_ins}:/usr/bin:/bin"
    environment = os.environ | {"PATH": path, "CALLS": str(calls), "STANDINS": str(stand_ins)}
    environment.pop("PYTHON", None)
    done = subprocess.run(
        [folder / "setup.sh"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()


@pytest.mark.parametrize("name", ["python3", "python3.12", "python3.11"])
def test_a_supported_python_makes_the_environment(tmp_path: Path, name: str) -> None:
    code, said, calls = set_up(tmp_path, {name: PYTHON_312, "uv": OLD})
    assert code == 0, said
    assert calls[-1].endswith(f"/{name} -m venv .venv")
    assert "uv" not in said


def test_where_only_another_python_is_uv_brings_312(tmp_path: Path) -> None:
    code, said, calls = set_up(tmp_path, {"uv": UV})
    assert code == 0, said
    assert "setup: no Python 3.11 or 3.12 here; uv brings 3.12" in said.splitlines()
    assert [call.split("/")[-1] for call in calls] == ["uv venv --quiet --seed --python 3.12 .venv"]


def test_uv_is_fetched_where_it_is_missing_and_leaves_no_trace(tmp_path: Path) -> None:
    code, said, calls = set_up(tmp_path, {"python3": NEWER, "pip-of-scratch": PIP_WITH_UV, "hidden-uv": UV})
    assert code == 0, said
    uv = calls[-1].split()[0]
    assert calls[-1].endswith("/uv venv --quiet --seed --python 3.12 .venv")
    assert not Path(uv).exists()


@pytest.mark.parametrize("programs", [{}, {"uv": OLD}, {"python3": NEWER, "pip-of-scratch": OLD}])
def test_without_network_one_line_says_what_to_install(tmp_path: Path, programs: dict[str, str]) -> None:
    code, said, _ = set_up(tmp_path, programs)
    assert code == 1
    assert said.splitlines()[1:] == [
        "setup: relic needs Python 3.11 or 3.12, and uv could not bring one; install python3.12 with its venv module, "
        "or name one as in: PYTHON=/usr/bin/python3.12 make setup"
    ]
    assert not (tmp_path / ".venv").exists()


def test_an_environment_of_another_python_is_refused(tmp_path: Path) -> None:
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    for name in ("pip", "python"):
        (environment / name).write_text(OLD)
        (environment / name).chmod(0o755)
    code, said, _ = set_up(tmp_path, {"python3": PYTHON_312})
    assert (code, said) == (1, "setup: .venv is not of Python 3.11 or 3.12; rm -r .venv, then make setup again\n")
