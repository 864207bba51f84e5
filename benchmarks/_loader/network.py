"""The upper limit of the network: bytes of shards at URLs, thrown away."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from relic.errors import InputError
from relic.storage.transfer import TransferError, chunks_of
from relic.storage.urls import without_secrets

STREAMS = 4
"""Shards that are fetched at once, as relic fetches them."""


def network_rate(urls: Sequence[str], seconds: float) -> float:
    """Bytes per second of the first `STREAMS` URLs, each read to its end or for `seconds`."""
    began = time.perf_counter()

    def drain(url: str) -> int:
        got = 0
        try:
            with closing(chunks_of(url, threading.Event())) as chunks:
                for chunk in chunks:
                    got += len(chunk)
                    if time.perf_counter() - began > seconds:
                        break
        except TransferError as error:
            raise InputError(f"{without_secrets(url)}: {error}") from error
        return got

    with ThreadPoolExecutor(STREAMS) as pool:
        got = sum(pool.map(drain, urls[:STREAMS]))
    return got / (time.perf_counter() - began)
