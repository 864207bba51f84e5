"""The folder for files that relic can make again: fetched shards, indexes, results of checks."""

import hashlib
from pathlib import Path

import platformdirs


def cache_folder(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/relic/PARTS`; without the variable `~/.cache/relic/PARTS`. Does not make the folder."""
    return platformdirs.user_cache_path("relic").joinpath(*parts)


def short_hash(text: str) -> str:
    """16 hexadecimal digits that stand for `text` in a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
