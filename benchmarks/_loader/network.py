"""The upper limit of the network: shards are fetched from their URLs again, as the cache fetches them."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from relic.files import temporary_folder
from relic.storage.download import download

STREAMS = 4
"""Shards that are fetched at once, as many as the cache fetches."""


def network_rate(urls: Sequence[str]) -> float:
    """Bytes per second of these URLs, `STREAMS` at a time, into a temporary folder."""
    with temporary_folder() as folder, ThreadPoolExecutor(STREAMS) as pool:
        began = time.perf_counter()
        fetched = list(pool.map(lambda numbered: _fetch(numbered[1], folder / f"{numbered[0]}.tar"), enumerate(urls)))
        return sum(fetched) / (time.perf_counter() - began)


def _fetch(url: str, path: Path) -> int:
    download(url, path, lambda temporary: None)
    return path.stat().st_size
