"""What four processes of a machine bring of a set of which half stays in the cache, in bytes that the server sends."""

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import write_shards
from tests.storage.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
SHARDS, SAMPLES, PROCESSES = 8, 24, 4
PATTERN = f"s3://bucket/set/train-{{000000..{SHARDS - 1:06d}}}.tar"
KEYS = [f"train{number:05d}" for number in range(SHARDS * SAMPLES)]
READ = """
import json, sys
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards
pattern, cache_gb, rank, processes = sys.argv[1], *map(float, sys.argv[2:])
shards = resolve_shards(pattern, "train", room=CacheRoom(cache_gb))
with ShardLoader(shards, batch_size=2) as loader:
    for line in sys.stdin:
        order = epoch_order(shards.samples, 7, int(line))
        batches = loader.batches(train_batches(order, 2 * int(processes), int(rank), int(processes)))
        print(json.dumps([key for batch in batches for key in batch.keys]), flush=True)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def tars(tmp_path: Path, s3: S3Server) -> dict[str, int]:
    """The bytes of each tar of the set, which is in the store."""
    folder = tmp_path / "packed"
    write_shards(folder, counts=(SAMPLES,) * SHARDS, side=224)
    s3.put_folder("bucket/set", {path.name: path.read_bytes() for path in folder.iterdir()})
    return {tar.name: tar.stat().st_size for tar in folder.glob("*.tar")}


class Readers:
    """Processes that read an epoch each time they are told to."""

    def __init__(self, cache_gb: float) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", READ, PATTERN, str(cache_gb), str(rank), str(PROCESSES)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(PROCESSES)
        ]  # fmt: skip

    def epoch(self, number: int) -> list[str]:
        """The keys that all have read, in any order."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        return sorted(key for process in self.processes for key in json.loads(process.stdout.readline()))  # type: ignore[union-attr]


@contextmanager
def reading(cache_gb: float) -> Iterator[Readers]:
    readers = Readers(cache_gb)
    try:
        yield readers
    finally:
        for process in readers.processes:
            process.kill()
            process.communicate()


def cached_bytes() -> int:
    tars = Path(os.environ["XDG_CACHE_HOME"], "relic", "parts").glob("*/*.tar")
    return sum(tar.stat().st_size for tar in tars)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_epoch_brings_what_is_not_in_the_cache_once(tars: dict[str, int], s3: S3Server) -> None:
    whole = sum(tars.values())
    with reading(whole / 2 / 1e9) as readers:
        wait_until(lambda: cached_bytes() > whole / 2 - max(tars.values()))
        assert readers.epoch(0) == KEYS  # brings the indexes too
        share = cached_bytes() / whole
        for number in (1, 2):
            s3.sent = 0
            assert readers.epoch(number) == KEYS
            logging.info("%d bytes, %.3f of what is missing", s3.sent, s3.sent / (1 - share) / whole)
            assert 0 < s3.sent <= 1.05 * (1 - share) * whole
        assert cached_bytes() == share * whole <= whole / 2


def test_a_link_that_is_cut_brings_little_twice(tars: dict[str, int], s3: S3Server) -> None:
    """One answer in three ends at a random byte: of whole shards, and of samples. So some are cut five times."""
    whole, randomness, cuts = sum(tars.values()), random.Random(3), 0

    def shorten(name: str, length: int) -> int:
        nonlocal cuts
        if length < 2000 or randomness.randrange(3):
            return length
        cuts += 1
        return randomness.randrange(1, length)

    with reading(whole / 2 / 1e9) as readers:
        s3.shorten = shorten
        wait_until(lambda: cached_bytes() > whole / 2 - max(tars.values()))
        logging.info("%.3f of the cache's bytes, %d cuts", s3.sent / cached_bytes(), cuts)
        assert s3.sent <= 1.1 * cached_bytes()
        assert readers.epoch(0) == KEYS
        share, cuts = cached_bytes() / whole, 0
        for number in (1, 2):
            s3.sent = 0
            assert readers.epoch(number) == KEYS
            logging.info("%.3f of what is missing, %d cuts", s3.sent / (1 - share) / whole, cuts)
            assert 0 < s3.sent <= 1.1 * (1 - share) * whole
        assert cuts > 20
