"""Large sets, simulated: many names of one tar, whose pixels are holes. Reads and bytes are counted, not seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from relic.loader import open_shard
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards import index, packed_files, shard_set
from relic.shards.index import IndexHeader, index_bytes, index_path, record_dtype
from relic.shards.manifest import Manifest, ShardInfo, write_manifest
from relic.shards.npy import npy_header
from relic.shards.shard_set import open_shard_set
from tests.conftest import a_packing

ROOT = Path(__file__).resolve().parents[2]
COCO = 118_287
"""Images of COCO's train2017."""
SIDE = 224
SAMPLE_BYTES = 512 + 128 + SIDE * SIDE * 3 + 384

MEASURE = """
import json, resource, sys
from pathlib import Path
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.shards.shard_set import open_shard_set

shards = open_shard_set(Path(sys.argv[1]), "train")
with ShardLoader(shards, batch_size=64, verify="first") as loader:
    order = epoch_order(shards.samples, 0, 0)
    batches = loader.batches(train_batches(order, 64, 0, 1))
    for _ in range(100):
        next(batches)
    batches.close()
    for batch in eval_batches(shards.num_samples, 64, 0, 1):
        last = int(batch[-1])
MiB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"evaluated": last + 1, "MiB": MiB}))
"""

BILLION = """
import json, resource, sys
from pathlib import Path
import relic.loader.loader
used = resource.getrusage(resource.RUSAGE_SELF)
before = used.ru_utime + used.ru_stime, used.ru_maxrss

from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import open_shard_set

shards = open_shard_set(Path(sys.argv[1]), "train")
order = epoch_order(shards.samples, 0, 0, window=4)
with ShardLoader(shards, batch_size=64, verify="first") as loader:
    batches = loader.batches(train_batches(order, 512, 7, 8, int(sys.argv[2])))
    keys = [next(batches).keys for _ in range(4)]
    batches.close()
used = resource.getrusage(resource.RUSAGE_SELF)
seconds, MiB = used.ru_utime + used.ru_stime - before[0], (used.ru_maxrss - before[1]) / 1024
print(json.dumps({"samples": len(order), "CPU seconds": seconds, "MiB": MiB, "keys": keys}))
"""
"""Time and memory beside those that torch takes, which it does for any set."""


class Reads:
    """Counts what is read of a set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.headers = self.records = self.samples = 0

        def read_header(path: Path) -> IndexHeader:
            self.headers += 1
            return index.read_index_header(path)

        def read_index(path: Path) -> tuple[IndexHeader, npt.NDArray[np.void]]:
            self.records += 1
            return index.read_index(path)

        def read_records(path: Path) -> npt.NDArray[np.void]:
            return read_index(path)[1]

        def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
            got = system_preadv(descriptor, buffers, offset, flags)
            self.samples += not flags or got == sum(map(len, buffers))  # with a flag, only what is in the page cache
            return got

        system_preadv = os.preadv
        for reader in (packed_files, shard_set):
            monkeypatch.setattr(reader, "read_index_header", read_header)
        monkeypatch.setattr(shard_set, "read_records", read_records)
        monkeypatch.setattr(open_shard, "read_index", read_index)
        monkeypatch.setattr(os, "preadv", preadv)


@contextmanager
def count_lines() -> Iterator[list[int]]:
    """Count the lines of Python that this thread runs inside the block: one per step of a loop."""
    lines = [0]

    def trace(frame: FrameType, event: str, argument: object) -> "Callable[..., Any]":
        lines[0] += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def simulate(folder: Path, samples: int, per_shard: int = 1000) -> None:
    """A packed set of `samples` (npy headers before holes); its whole shards are one file, so their keys repeat."""
    infos = []
    for number, first in enumerate(range(0, samples, per_shard)):
        count = min(per_shard, samples - first)
        tar = folder / f"train-{number:06d}.tar"
        if number and count == per_shard:
            os.link(folder / "train-000000.tar", tar)
            os.link(index_path(folder / "train-000000.tar"), index_path(tar))
        else:
            write_sparse(tar, count)
        infos.append(ShardInfo(tar.name, count, count * SAMPLE_BYTES + 1024, "0" * 64))
    packing = a_packing(width=SIDE, height=SIDE, samples_per_shard=per_shard)
    write_manifest(folder, Manifest(packing, tuple(infos), samples, 0))


def write_sparse(tar: Path, count: int) -> None:
    table = np.zeros(count, record_dtype(24 + 16))
    table["offset"] = 512 + np.arange(count) * SAMPLE_BYTES
    table["size"] = 128 + SIDE * SIDE * 3
    table["xxh3"] = xxhash.xxh3_64_intdigest(npy_header(SIDE, SIDE) + bytes(SIDE * SIDE * 3))
    table["key"] = [f"{place:012d}" for place in range(count)]
    with tar.open("wb") as file:
        for offset in table["offset"].tolist():
            file.seek(offset)
            file.write(npy_header(SIDE, SIDE))
        file.truncate(count * SAMPLE_BYTES + 1024)
    index_path(tar).write_bytes(index_bytes(table, count * SAMPLE_BYTES + 1024))


def measure(script: str, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=100)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_first_batch_of_coco_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the epoch is resumed in the middle."""
    simulate(tmp_path, COCO)
    reads = Reads(monkeypatch)
    shards = open_shard_set(tmp_path, "train")
    assert (reads.headers, reads.records, reads.samples) == (119, 0, 0)
    order = epoch_order(shards.samples, 0, 0)
    for begun in (0, COCO // 128 * 64):
        reads.samples = reads.records = 0
        with ShardLoader(shards, batch_size=64, verify="off", direct="off") as loader:
            batches = loader.batches(train_batches(order, 64, 0, 1, begun))
            first = next(batches)
            keys = [f"{sample % 1000:012d}" for sample in order[begun : begun + 64].tolist()]
            assert first.keys == keys
            next(batches)
            batches.close()  # type: ignore[attr-defined]
        # Nine batches are filled ahead; each shard's index is read when the first of its samples is.
        assert 2 * 64 <= reads.samples <= 10 * 64
        assert reads.records <= 119
    assert reads.headers == 119


def test_the_order_of_coco_and_its_batches_are_made_without_a_loop_over_samples() -> None:
    samples = [1000] * (COCO // 1000) + [COCO % 1000]
    with count_lines() as lines:
        order = epoch_order(samples, 0, 0)
        first = next(train_batches(order, 64, 0, 1, COCO // 2))
    assert len(order) == COCO
    assert first.tolist() == order[COCO // 2 // 64 * 64 :][:64].tolist()
    assert 0 < lines[0] < 1000


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("per_shard", [1000, 10_000])
def test_ten_million_samples_cost_little_memory(tmp_path: Path, per_shard: int) -> None:
    sizes = {}
    for name, samples in (("small", 6464 * 2), ("large", 10_000_000)):
        (tmp_path / name).mkdir()
        simulate(tmp_path / name, samples, per_shard)
        found = measure(MEASURE, str(tmp_path / name))
        assert found["evaluated"] == samples
        sizes[name] = found["MiB"]
    assert sizes["large"] - sizes["small"] <= 300


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("begun", [0, 499_999_744])
def test_a_billion_samples_start_at_once_in_little_memory(tmp_path: Path, begun: int) -> None:
    """100,000 shards in the manifest. Only those of the first batches exist."""
    per_shard, count = 10_000, 100_000
    size = per_shard * SAMPLE_BYTES + 1024
    infos = tuple(ShardInfo(f"train-{number:06d}.tar", per_shard, size, f"{number:064x}") for number in range(count))
    packing = a_packing(width=SIDE, height=SIDE, samples_per_shard=per_shard)
    write_manifest(tmp_path, Manifest(packing, infos, per_shard * count, 0))
    plan = epoch_order([per_shard] * count, 0, 0, window=4)[begun : begun + 40 * 512]
    needed = {sample // per_shard for sample in plan.tolist()}
    first, *others = (tmp_path / infos[number].name for number in sorted(needed))
    write_sparse(first, per_shard)
    for tar in others:
        os.link(first, tar)
        os.link(index_path(first), index_path(tar))
    found = measure(BILLION, str(tmp_path), str(begun))
    taken = train_batches(epoch_order([per_shard] * count, 0, 0, window=4), 512, 7, 8, begun)
    expected = [[f"{sample % per_shard:012d}" for sample in next(taken).tolist()] for _ in range(4)]
    assert (found["samples"], found["keys"]) == (per_shard * count, expected)
    assert found["CPU seconds"] <= 5 and found["MiB"] <= 300, found
