import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from relic.errors import InputError
from relic.shards import shard_set
from relic.shards.index import index_path
from relic.shards.manifest import Manifest, ShardInfo, read_manifest, write_manifest
from relic.shards.shard_set import open_shard_set, plan_path
from relic.shards.writer import ShardWriter
from tests.conftest import a_packing

PACKING = a_packing(width=4, height=2, samples_per_shard=3, libraries={"pillow": "1"})


def pack(folder: Path, sizes: tuple[int, ...], payload: bytes = b"x") -> Manifest:
    infos: list[ShardInfo] = []
    for shard, size in enumerate(sizes):
        with ShardWriter(folder / f"train-{shard:06d}.tar") as writer:
            for number in range(size):
                writer.add(f"{shard}-{number}", ".npy", payload, {})
        assert writer.info is not None
        infos.append(writer.info)
    manifest = Manifest(PACKING, tuple(infos), sum(sizes), 0)
    write_manifest(folder, manifest)
    return manifest


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    manifest = pack(tmp_path, (3, 1))
    assert read_manifest(tmp_path, "train") == manifest
    assert read_manifest(tmp_path, "val") is None
    assert json.loads((tmp_path / "train.json").read_text())["shards"][1]["name"] == "train-000001.tar"


def test_a_difference_names_what_differs() -> None:
    other = dataclasses.replace(PACKING, encoding="jpg", seed=3)
    assert PACKING.difference(other) == "encoding: raw -> jpg; seed: 0 -> 3"
    assert not PACKING.difference(dataclasses.replace(PACKING))


def test_a_set_is_opened(tmp_path: Path) -> None:
    pack(tmp_path, (3, 1))
    shards = open_shard_set(tmp_path, "train")
    assert (shards.samples, shards.num_samples, shards.height, shards.width) == ((3, 1), 4, 2, 4)
    assert [tar.name for tar in shards.tars] == ["train-000000.tar", "train-000001.tar"]


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    prints = []
    for name, payload in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).mkdir()
        pack(tmp_path / name, (2,), payload)
        prints.append(open_shard_set(tmp_path / name, "train").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def cut_tar(folder: Path) -> None:
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: [file.unlink() for file in folder.iterdir()], r"no train\.json"),
        (lambda folder: (folder / "train.json").unlink(), "sample 0-0: neither a uint8 npy"),
        (lambda folder: (folder / "train.json").write_text("{}"), "not a manifest"),
        (lambda folder: (folder / "train.json").write_text('{"format_version": 99}'), "format 99"),
        (lambda folder: (folder / "train-000000.tar").unlink(), "shard is missing"),
        (lambda folder: index_path(folder / "train-000000.tar").unlink(), "index is missing"),
        (cut_tar, "cut or changed"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, harm: Any, message: str) -> None:
    pack(tmp_path, (2,))
    harm(tmp_path)
    with pytest.raises(InputError, match=message):
        open_shard_set(tmp_path, "train")


def pack_more(folder: Path) -> None:
    """A shard of another packing in the place of one: with an index that fits it."""
    (folder / "other").mkdir()
    pack(folder / "other", (3,))
    for file in ("train-000000.tar", "train-000000.index"):
        (folder / "other" / file).replace(folder / file)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "train-000000.tar").unlink(),
        lambda folder: index_path(folder / "train-000000.tar").unlink(),
        cut_tar,
        pack_more,
    ],
)
def test_in_a_large_set_the_same_is_said_of_a_shard_when_it_is_read(
    tmp_path: Path, harm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path, (2, 1))
    harm(tmp_path)
    with pytest.raises(InputError) as at_once:
        open_shard_set(tmp_path, "train")
    monkeypatch.setattr(shard_set, "_CHECKED_AT_START", 1)
    shards = open_shard_set(tmp_path, "train")
    shards.check(1)
    with pytest.raises(InputError) as later:
        shards.check(0)
    assert str(later.value) == str(at_once.value)


def test_of_a_large_set_only_the_manifest_is_opened(tmp_path: Path, opened: list[Path]) -> None:
    infos = [ShardInfo(f"train-{number:06d}.tar", 7, 9000 + number, f"{number:064x}") for number in range(5000)]
    prints = []
    for names in (infos, infos, infos[::-1]):
        write_manifest(tmp_path, Manifest(PACKING, tuple(names), 35_000, 0))
        opened.clear()
        shards = open_shard_set(tmp_path, "train")
        assert opened == [tmp_path / "train.json"]
        assert (shards.num_samples, len(shards.tars), shards.indexes[1]) == (35_000, 5000, index_path(shards.tars[1]))
        prints.append(shards.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_an_unfinished_packing_says_so(tmp_path: Path) -> None:
    plan_path(tmp_path, "train").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        open_shard_set(tmp_path, "train")
    with pytest.raises(InputError, match="--val_shards"):
        open_shard_set(tmp_path / "none", "train", flag="--val_shards")
