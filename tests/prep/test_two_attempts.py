"""Two processes that pack one shard at once, in every order of their steps: the tar is always the recorded one."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from PIL import Image

from relic.shards.index import read_records

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("index", "jsonl", "tar", "done.json")

ATTEMPTS = """
import os, sys
from pathlib import Path
from prep.images import LocalImages
from prep.shard_worker import pack_shard
from prep.tasks import KeyedSource, ShardTask
from relic.errors import InputError
from relic.pictures.listing import list_sources
from tests.conftest import a_packing

link = os.link

def stop_and_link(temporary, path):
    print("next", flush=True)
    sys.stdin.readline()
    link(temporary, path)

os.link = stop_and_link
packing = a_packing(width=16, height=16, samples_per_shard=10, sources_sha256="")
for line in sys.stdin:
    images, out = map(Path, line.split())
    sources = tuple(KeyedSource(source, source.path.split(".")[0]) for source in list_sources(images))
    task = ShardTask(shard=0, sources=sources, images=LocalImages(images), out_dir=out, packing=packing)
    try:
        record = pack_shard(task, lambda number: None)
        print("packed", record.info.sha256 if record.info else "nothing", flush=True)
    except InputError as error:
        print("refused", str(error).count("with other bytes"), flush=True)
"""


class Attempt:
    """A process that packs shard 0 of a folder, and waits before it gives each file its name."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ATTEMPTS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, images: Path, out: Path) -> None:
        self._say(f"{images} {out}")
        self.outcome = self._hear()

    def step(self) -> None:
        """Publish one file more, if the attempt has not ended."""
        if self.outcome == "next":
            self._say("go")
            self.outcome = self._hear()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def attempts() -> Iterator[tuple[Attempt, Attempt]]:
    both = Attempt(), Attempt()
    yield both
    for each in both:
        each.close()


def draw(folder: Path, level: int) -> Path:
    """Two images; their files are of one length for every level."""
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20), (level, number, 0)).save(folder / f"{number}.bmp")
    return folder


def published(out: Path) -> str | None:
    """The sha256 of the tar, once it is recorded. Every file that describes it is then of the same attempt."""
    done = out / "train-000000.done.json"
    if not done.exists():
        return None
    recorded = json.loads(done.read_text())["info"]["sha256"]
    tar = (out / "train-000000.tar").read_bytes()
    assert hashlib.sha256(tar).hexdigest() == recorded
    for record in read_records(out / "train-000000.index"):
        payload = tar[int(record["offset"]) : int(record["offset"] + record["size"])]
        assert xxhash.xxh3_64_intdigest(payload) == int(record["xxh3"])
    return str(recorded)


@pytest.mark.commands
@pytest.mark.parametrize("same", [True, False], ids=["equal bytes", "other bytes"])
def test_every_order_of_two_attempts(attempts: tuple[Attempt, Attempt], tmp_path: Path, same: bool) -> None:
    """The states between the steps are also those that a killed attempt leaves."""
    first, second = attempts
    images = [draw(tmp_path / "one", 10), draw(tmp_path / "two", 10 if same else 200)]
    for case, chosen in enumerate(itertools.combinations(range(2 * len(STEPS)), len(STEPS))):
        out = tmp_path / str(case)
        out.mkdir()
        for attempt, folder in zip(attempts, images, strict=True):
            attempt.begin(folder, out)
        before = None
        for step in range(2 * len(STEPS)):
            (first if step in chosen else second).step()
            now = published(out)
            assert before in (None, now), f"replaced, {chosen}"
            before = now
        outcomes = sorted(attempt.outcome for attempt in attempts)
        expected = f"packed {before}"
        assert outcomes == ([expected] * 2 if same else [expected, "refused 1"]), chosen
        assert sorted(path.name for path in out.iterdir()) == sorted(f"train-000000.{end}" for end in STEPS)


@pytest.mark.commands
def test_an_attempt_that_reads_nothing_does_not_replace_one_that_packed(
    attempts: tuple[Attempt, Attempt], tmp_path: Path
) -> None:
    first, second = attempts
    images = draw(tmp_path / "one", 10)
    sick = draw(tmp_path / "two", 10)
    for path in sick.iterdir():
        path.write_bytes(b"x")
    out = tmp_path / "out"
    out.mkdir()
    first.begin(images, out)
    second.begin(sick, out)
    for _ in STEPS:
        first.step()
    second.step()
    assert second.outcome == "refused 1"
    assert first.outcome == f"packed {published(out)}"
