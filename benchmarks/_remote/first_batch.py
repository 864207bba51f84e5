"""Seconds from a pattern of URLs to the first batch, in a process that has done nothing before."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards

_ROOT = Path(__file__).resolve().parents[2]


def seconds_to_first_batch(pattern: str, cache: Path, cache_gb: float, batch_size: int, start_images: int) -> float:
    """Open the set in a new process and read the batch that begins at `start_images`. Imports are not counted."""
    values = [pattern, str(cache_gb), str(batch_size), str(start_images)]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks._remote.first_batch", *values],
        cwd=_ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return float(json.loads(ended.stdout))


def _measure(pattern: str, cache_gb: float, batch_size: int, start_images: int) -> float:
    began = time.perf_counter()
    shards = resolve_shards(pattern, "train", room=CacheRoom(cache_gb))
    order = epoch_order(shards.samples, 0, 0)
    with ShardLoader(shards, batch_size=batch_size) as loader:
        next(loader.batches(train_batches(order, batch_size, 0, 1, start_images)))
        return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
