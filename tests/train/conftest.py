"""One run of the trainer. What imports torch is imported by the fixture: tests beside it may need no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.train.runs import Run


@pytest.fixture
def run(crops: Path, tmp_path: Path) -> "Run":
    """`run("--epochs", "1", folder=...)`: train and return the exit code."""
    from tests.train.runs import tiny
    from train.main import main

    def call(*flags: str, folder: Path = tmp_path) -> int:
        return main(tiny(crops, folder, *flags))

    return call
