"""Where relic keeps what it can make again."""

from pathlib import Path

import pytest

from relic.cache import cache_folder


def test_the_cache_folder_is_below_xdg_cache_home_or_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("shards", "x") == tmp_path / "cache" / "relic" / "shards" / "x"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder("shards") == tmp_path / ".cache" / "relic" / "shards"
    assert not any(tmp_path.iterdir())
