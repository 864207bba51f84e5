"""For tests of object stores: an S3 server on loopback, and no credentials of the machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relic.storage import download
from tests.storage.s3_server import forget_stores


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials of the machine, and stores that are made anew."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.05)
    forget_stores()
    yield
    forget_stores()
