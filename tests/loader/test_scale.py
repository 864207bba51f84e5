"""Large sets, simulated: many names of one tar, whose pixels are holes. Times are of the process, and generous."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relic.shards.index import index_bytes, index_path, record_dtype
from relic.shards.manifest import Manifest, Packing, ShardInfo, write_manifest
from relic.shards.npy import npy_header

ROOT = Path(__file__).resolve().parents[2]
SIDE = 224
SAMPLE_BYTES = 512 + 128 + SIDE * SIDE * 3 + 384

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.shards.shard_set import open_shard_set

found = {}
class lap:
    def __init__(self, name):
        self.name = name
    def __enter__(self):
        self.began = time.process_time(), time.perf_counter()
    def __exit__(self, *error):
        found[self.name] = time.process_time() - self.began[0], time.perf_counter() - self.began[1]

with lap("open and first batch"):
    with lap("open"):
        shards = open_shard_set(Path(sys.argv[1]), "train")
    loader = ShardLoader(shards, batch_size=64, verify="off")
    with lap("order"):
        order = epoch_order(shards.samples, 0, 0)
    batches = loader.batches(train_batches(order, 64, 0, 1))
    next(batches)
with lap("100 batches"):
    for _ in range(100):
        next(batches)
batches.close()
loader.close()
with ShardLoader(shards, batch_size=64, verify="first") as loader:
    with lap("resume in the middle"):
        order = epoch_order(shards.samples, 0, 1)
        plan = train_batches(order, 64, 0, 1, len(order) // 2)
    for batch in eval_batches(shards.num_samples, 64, 0, 1):
        last = int(batch[-1])
    found["evaluated"] = last + 1
found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""


def simulate(folder: Path, samples: int, a_shard: int = 1000) -> None:
    """A packed set of `samples` (npy headers before holes); its whole shards are one file, so their keys repeat."""
    infos = []
    for number, first in enumerate(range(0, samples, a_shard)):
        count = min(a_shard, samples - first)
        tar = folder / f"train-{number:06d}.tar"
        if number and count == a_shard:
            os.link(folder / "train-000000.tar", tar)
            os.link(index_path(folder / "train-000000.tar"), index_path(tar))
        else:
            write_sparse(tar, count)
        infos.append(ShardInfo(tar.name, count, count * SAMPLE_BYTES + 1024, "0" * 64))
    packing = Packing(
        split="train",
        width=SIDE,
        height=SIDE,
        crop="center",
        crops_per_image=1,
        encoding="raw",
        jpeg_quality=95,
        decode="exact",
        samples_per_shard=a_shard,
        seed=0,
        sources_sha256="0" * 64,
        libraries={},
    )
    write_manifest(folder, Manifest(packing, tuple(infos), samples, 0))


def write_sparse(tar: Path, count: int) -> None:
    table = np.zeros(count, record_dtype(24 + 16))
    table["offset"] = 512 + np.arange(count) * SAMPLE_BYTES
    table["size"] = 128 + SIDE * SIDE * 3
    table["key"] = [f"{place:012d}" for place in range(count)]
    with tar.open("wb") as file:
        for offset in table["offset"].tolist():
            file.seek(offset)
            file.write(npy_header(SIDE, SIDE))
        file.truncate(count * SAMPLE_BYTES + 1024)
    index_path(tar).write_bytes(index_bytes(table, count * SAMPLE_BYTES + 1024))


def measure(folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=100)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_coco_begins_at_once(tmp_path: Path) -> None:
    simulate(tmp_path, 118_287)
    found = measure(tmp_path)
    assert found["evaluated"] == 118_287
    for name, seconds in (("open and first batch", 2.0), ("order", 0.2), ("resume in the middle", 0.4)):
        assert found[name][0] < seconds, (name, found)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("a_shard", [1000, 10_000])
def test_ten_million_samples_cost_little_memory(tmp_path: Path, a_shard: int) -> None:
    sizes = {}
    for name, samples in (("small", 6464 * 2), ("large", 10_000_000)):
        (tmp_path / name).mkdir()
        simulate(tmp_path / name, samples, a_shard)
        found = measure(tmp_path / name)
        assert found["evaluated"] == samples
        sizes[name] = found["MiB"]
    assert sizes["large"] - sizes["small"] <= 300
