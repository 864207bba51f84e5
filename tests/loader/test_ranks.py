"""Uneven shards over several ranks, simulated and in real processes. A killed reader leaves nothing behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.shards.shard_set import open_shard_set
from tests.conftest import write_shards

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (7, 5, 1)
KEYS = [f"train{number:05d}" for number in range(sum(COUNTS))]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    write_shards(folder, counts=COUNTS, side=32)
    return folder


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("world_size", "threads"), itertools.product((1, 2, 3, 4), (1, 3)))
def test_every_rank_reads_as_many_batches(uneven: Path, world_size: int, threads: int) -> None:
    shards = open_shard_set(uneven, "train")
    order = epoch_order(shards.samples, 0, 0)
    train: list[list[list[str]]] = []
    evaluated: list[str] = []
    for rank in range(world_size):
        with ShardLoader(shards, batch_size=4, threads=threads) as loader:
            train.append([b.keys for b in loader.batches(train_batches(order, world_size, rank, world_size))])
            for batch in loader.batches(eval_batches(len(KEYS), 4, rank, world_size)):
                evaluated += batch.keys
    assert {len(batches) for batches in train} == {len(KEYS) // world_size}
    joined = [[key for keys in step for key in keys] for step in zip(*train, strict=True)]
    batches = order[: len(joined) * world_size].reshape(-1, world_size)
    assert joined == [[KEYS[number] for number in sorted(batch)] for batch in batches.tolist()]
    assert evaluated == KEYS


@pytest.mark.timeout(10)
def test_more_ranks_than_samples(uneven: Path) -> None:
    shards = open_shard_set(uneven, "train")
    with ShardLoader(shards, batch_size=1) as loader:
        read = [[b.keys[0] for b in loader.batches(eval_batches(len(KEYS), 1, rank, 20))] for rank in range(20)]
    assert list(itertools.chain(*read)) == KEYS
    assert sorted(map(len, read)) == [0] * 7 + [1] * 13
    with pytest.raises(InputError, match="hold only 13 samples"):
        train_batches(epoch_order(shards.samples, 0, 0), 20, 0, 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_process_of_torchrun_reads_only_its_own_samples(uneven: Path, tmp_path: Path, world_size: int) -> None:
    few = tmp_path / "few"
    write_shards(few, counts=(1, 1), side=32)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for folder, keys in ((uneven, KEYS), (few, KEYS[:2])):
        out = tmp_path / f"out-{folder.name}"
        out.mkdir()
        script = [str(ROOT / "tests/loader/read_ranks.py"), str(folder), str(out), str(world_size)]
        subprocess.run([*command, *script], env=environment, check=True, timeout=120, capture_output=True)
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(world_size)]
        for rank in ranks:  # no rank reads samples of another, none twice
            own = rank["train"] if isinstance(rank["train"], list) else []
            assert sorted(rank["read"]) == sorted(key for batch in own + rank["eval"] for key in batch)
        assert [key for rank in ranks for batch in rank["eval"] for key in batch] == keys
        if world_size > len(keys):
            assert all(f"hold only {len(keys)} samples" in rank["train"] for rank in ranks)
            continue
        assert {len(rank["train"]) for rank in ranks} == {len(keys) // world_size}
        taken = [key for rank in ranks for batch in rank["train"] for key in batch]
        assert len(set(taken)) == len(taken) == len(keys) // world_size * world_size
        assert set(taken) <= set(keys)


READ_FOR_EVER = """
import sys, itertools
from pathlib import Path
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.shards.shard_set import open_shard_set
shards = open_shard_set(Path(sys.argv[1]), "train")
with ShardLoader(shards, batch_size=4, threads=2) as loader:
    for epoch in itertools.count():
        for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1)):
            print(epoch, flush=True)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_reader_leaves_nothing_behind(uneven: Path, number: signal.Signals) -> None:
    files = sorted(uneven.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", READ_FOR_EVER, str(uneven)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as reader:
        assert reader.stdout is not None
        for _ in range(20):
            assert reader.stdout.readline()
        mapped = Path(f"/proc/{reader.pid}/maps").read_text()
        opened = [os.readlink(link) for link in Path(f"/proc/{reader.pid}/fd").iterdir() if link.is_symlink()]
        children = Path(f"/proc/{reader.pid}/task/{reader.pid}/children").read_text().split()
        reader.send_signal(number)
        assert reader.wait(10) != 0
    assert "/dev/shm" not in mapped
    assert not [path for path in opened if path.startswith("/dev/shm")]
    assert not children
    assert sorted(uneven.iterdir()) == files


def test_the_order_of_a_large_set_is_the_stable_argsort_of_its_words() -> None:
    """Sorted by buckets: against numpy's own sort of all words at once."""
    count = 2_500_000
    words = np.random.Philox(key=[3, 4], counter=[0, 0, 0, 0]).random_raw(count)
    assert np.array_equal(epoch_order([count], 3, 4)[:], np.argsort(words, kind="stable"))
