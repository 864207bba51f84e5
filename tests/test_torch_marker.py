"""`make unit` leaves out exactly the tests that need torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torch_marker import needs_torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("path", "heavy"),
    [
        ("tests/shards/test_ustar.py", False),
        ("tests/prep/test_listing.py", False),
        ("tests/train/test_guard.py", True),
        ("tests/codec/test_checkpoint.py", True),
        ("tests/train/test_schedule.py", False),
    ],
)
def test_the_marker_follows_imports(path: str, heavy: bool) -> None:
    assert needs_torch(ROOT / path) == heavy


@pytest.mark.commands
def test_unit_tests_are_collected_where_torch_is_missing() -> None:
    code = (
        "import sys, pytest; sys.modules.update(torch=None, compressai=None);"
        "sys.exit(pytest.main(['--collect-only', '-m', 'not slow and not torch', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/shards/test_ustar.py" in done.stdout
    assert "tests/codec/test_model.py" not in done.stdout
