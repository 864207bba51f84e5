"""Where what can be made again is kept between runs."""

import hashlib
import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/relic/PARTS`, in ~/.cache where the variable is not set; not made here."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache").joinpath("relic", *parts)


def short_hash(text: str) -> str:
    """16 hexadecimal digits that stand for `text` in a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
