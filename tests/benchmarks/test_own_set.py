"""What limits a user's own shards: tiny sets, and the sentences of made-up figures."""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._loader import own_set
from benchmarks._loader.own_set import OwnSet
from benchmarks._loader.tables import own_set_table
from benchmarks.loader import main
from relic.loader.loader import ShardLoader
from relic.options import Encoding
from relic.shards.shard_set import ShardSet, open_shard_set
from tests.conftest import ShardFactory, encode, write_shards
from tests.storage.http_shards import serve


@pytest.mark.commands
@pytest.mark.parametrize("encoding", ["raw", "jpg", "png"])
def test_every_part_of_a_set_is_measured(
    encoding: Encoding, make_shards: ShardFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "own", "val", (9, 8), side=64, encoding=encoding)
    flags = ["--shards", str(tmp_path / "own"), "--split", "val", "--gpu_images_per_second", "0.5"]
    outputs = ["--json", str(tmp_path / "own.json"), "--markdown", str(tmp_path / "own.md")]
    assert main([*flags, *outputs, "--batch_size", "4", "--epochs", "2", "--seconds", "0.2"]) == 0
    found = json.loads((tmp_path / "own.json").read_text())
    assert set(found["ceilings"]) == {"disk", "cores", "feed"} and min(found["ceilings"].values()) > 0
    assert found["first_bound_by"] == min(found["ceilings"], key=found["ceilings"].get)
    assert found["bound_by"] in ("cores", "feed") and found["network"] is None
    assert found["gpus"] == pytest.approx(found["images_per_second"] / 0.5)
    assert found["first_images_per_second"] > 0
    assert found["set_bytes"] == sum(tar.stat().st_size for tar in (tmp_path / "own").glob("*.tar"))
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "own.md").read_text()
    assert f"17 val crops of 64x64, {encoding}, 2 shards" in printed


@pytest.mark.commands
@pytest.mark.parametrize("encoding", ["raw", "jpg"])
def test_a_set_whose_indexes_are_in_the_cache_is_measured(encoding: Encoding, tmp_path: Path) -> None:
    """A tar of another program, beside which another file has the name of its index."""
    rng = np.random.default_rng(0)
    suffix = {"raw": "npy", "jpg": "jpg"}[encoding]
    with tarfile.open(tmp_path / "train-000000.tar", "w") as archive:
        for number in range(4):
            payload = encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), encoding)
            member = tarfile.TarInfo(f"{number}.{suffix}")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    (tmp_path / "train-000000.index").write_text("0.npy 512\n")
    flags = ["--shards", str(tmp_path), "--json", str(tmp_path / "own.json"), "--batch_size", "2", "--epochs", "2"]
    assert main([*flags, "--seconds", "0.1"]) == 0
    assert min(json.loads((tmp_path / "own.json").read_text())["ceilings"].values()) > 0


@pytest.mark.commands
def test_shards_at_urls_are_fetched_to_measure_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "web", counts=(4, 4, 4, 4, 4, 4), side=64)
    with serve(tmp_path / "web") as server:
        named = f"{server.url}/train-{{000000..000005}}.tar"
        flags = ["--shards", named, "--json", str(tmp_path / "own.json"), "--batch_size", "4", "--epochs", "2"]
        assert main([*flags, "--seconds", "0.2"]) == 0
        fetched = {Path(path).name for path in server.requests}
    assert json.loads((tmp_path / "own.json").read_text())["network"] > 0
    assert {name for name in fetched if name.endswith(".tar")} == {f"train-00000{number}.tar" for number in range(4)}
    assert "While shards are fetched, the network is" in capsys.readouterr().out


@pytest.mark.commands
def test_a_part_of_a_set_beyond_memory_is_read_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the set would fit, and would then be read through the page cache."""
    write_shards(tmp_path, counts=(6, 6), side=64)
    whole = open_shard_set(tmp_path, "train")
    monkeypatch.setattr("relic.loader.reading.available_memory", lambda: sum(whole.tar_bytes))
    monkeypatch.setattr(own_set, "_MOST_SHARDS", 1)
    seen = []

    class Loader(ShardLoader):
        def __init__(self, *shards: ShardSet, **options: Any) -> None:
            super().__init__(*shards, **options)
            seen.append(self.reading.cached)

    monkeypatch.setattr(own_set, "ShardLoader", Loader)
    found = own_set.measure_own_set(whole, (), batch_size=2, rounds=2, seconds=0.1, threads=1, io_threads=0)
    assert seen == [0, 0, 0]  # none of its shards through the page cache, in three loaders
    assert found.images_per_second is None and "do not fit" in found.reading


def test_a_set_smaller_than_a_batch_is_refused(
    make_shards: ShardFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path, "train", (5,), side=64)
    assert main(["--shards", str(tmp_path), "--batch_size", "6"]) == 2
    assert f"--batch_size 6: {tmp_path} has only 5 train samples\n" in capsys.readouterr().err


def measured(**changed: object) -> OwnSet:
    """A set whose disk is the slowest part."""
    figures = OwnSet(
        network=None, ceilings={"disk": 2400.0, "cores": 9000.0, "feed": 50_000.0}, reading="train shards are read",
        direct=True, device="cpu",
        first_images_per_second=2232.0, first_bound_by="disk", images_per_second=8550.0, bound_by="cores",
        set_bytes=2_000_000_000, available_bytes=8_000_000_000,
    )  # fmt: skip
    return figures._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (measured(), "The disk is the limit: 2,400 images/s; the loader reaches 0.93 of it."),
        (
            measured(),
            "Later epochs come from memory. The cores are the limit: 9,000 images/s; the loader reaches 0.95 of it.",
        ),
        (
            measured(images_per_second=None, first_bound_by="feed", bound_by="feed", device="cuda"),
            "The copy to the GPU is the limit: 50,000 images/s; the loader reaches 0.04 of it.",
        ),
        (measured(network=1200.0), "While shards are fetched, the network is the limit: 1,200 images/s."),
        (measured(network=9999.0), "While shards are fetched, the network is not the limit: 9,999 images/s."),
        (measured(), "The loader: train shards are read."),
        (measured(), "2 GB, which fits in the available memory of 8 GB"),
        (measured(images_per_second=None), "2 GB, which does not fit in the available memory of 8 GB"),
        (measured(direct=False), "| disk: reads alone, after dropping the page cache; O_DIRECT is refused "),
        (measured(), "At 3,000 images/s per GPU this feeds 2 GPUs (2.85), in the first epoch 0.74."),
    ],
)
def test_one_sentence_tells_the_limit(figures: OwnSet, told: str, tmp_path: Path) -> None:
    write_shards(tmp_path, counts=(2,), side=64)
    assert told in own_set_table(open_shard_set(tmp_path, "train"), figures, 3000.0)


def test_a_rate_counts_from_the_first_batch_where_it_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    closed = []

    def batches(count: int) -> Iterator[range]:
        clock[0] += 4  # until the first one is there, some are read ahead
        try:
            for _ in range(count):
                clock[0] += 1
                yield range(10)
        finally:
            closed.append(count)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    rate = vars(own_set)["_rate"]
    assert rate(batches(100), 3.5) == 10  # 4 batches in 4 s after the first
    assert rate(batches(5), 100) == 50 / 9  # all of them, with the 4 s before
    assert closed == [100, 5]


def test_of_many_shards_some_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, counts=(3, 1, 2, 4), side=64)
    monkeypatch.setattr(own_set, "_MOST_SHARDS", 2)
    whole = open_shard_set(tmp_path, "train")
    some = vars(own_set)["_some_shards"](whole)
    places = [whole.tars.index(tar) for tar in some.tars]
    assert len(places) == 2 and places == sorted(places)
    assert some.indexes == tuple(whole.indexes[place] for place in places)
    assert some.samples == tuple(whole.samples[place] for place in places)
    assert some.tar_bytes == tuple(tar.stat().st_size for tar in some.tars)
    monkeypatch.setattr(own_set, "_MOST_BYTES", 3 * 64 * 64 * 3)  # two samples with their headers
    assert len(vars(own_set)["_some_samples"](whole)) == 2
