"""Reading a listed file: what stands in the way is named."""

import os
from pathlib import Path

import pytest

from prep.reading import read_source
from relic.errors import InputError
from relic.pictures.reasons import Unreadable


def test_reading_tells_what_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "whole.jpg").write_bytes(b"123")
    os.symlink("nowhere", tmp_path / "dangling.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert read_source(tmp_path / "whole.jpg", 3) == b"123"
    for name, reason in (("empty.jpg", "empty"), ("dangling.jpg", "dangling"), ("pipe.jpg", "not a regular file")):
        with pytest.raises(Unreadable, match=reason):
            read_source(tmp_path / name, 0)
    for name, message in (("gone.jpg", "deleted"), ("whole.jpg", "changed")):
        with pytest.raises(InputError, match=message):
            read_source(tmp_path / name, 4)

    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, length: read(descriptor, 1))  # as on some network file systems
    assert read_source(tmp_path / "whole.jpg", 3) == b"123"

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Unreadable, match="Permission denied"):
        read_source(tmp_path / "whole.jpg", 3)
