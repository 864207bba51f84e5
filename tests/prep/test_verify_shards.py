"""verify_shards.py reports each fault."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prep.make_shards import main as make_shards
from prep.verify_shards import main
from relic.shards.index import index_path, read_records


@pytest.fixture(scope="module", params=["raw", "jpg", "png"])
def packed(
    request: pytest.FixtureRequest,
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The files of a packed folder."""
    from PIL import Image

    coco: Path = tmp_path_factory.mktemp("coco")
    out: Path = tmp_path_factory.mktemp("out")
    (coco / "train2017").mkdir()
    for number in range(5):
        Image.fromarray(make_photograph(60, 40, number)).save(coco / "train2017" / f"{number}.jpg")
    flags = ("--include_val", "false", "--size", "16", "--samples_per_shard", "3", "--workers", "1")
    assert make_shards(["--coco_dir", str(coco), "--out_dir", str(out), "--encoding", request.param, *flags]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def shards(packed: dict[str, bytes], tmp_path: Path) -> Path:
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def verify(shards: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["--shards", str(shards)])
    return code, capsys.readouterr().out


@pytest.mark.commands
def test_a_good_folder_passes(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(shards, capsys) == (0, "train: 5 samples in 2 shards, 0 faults\n")


@pytest.mark.parametrize("place", ["head", "payload", "padding", "end"])
def test_a_flipped_byte_is_named(shards: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    tar = shards / "train-000000.tar"
    record = read_records(index_path(tar))[1]
    first, size = int(record["offset"]), int(record["size"])
    if place == "padding" and size % 512 == 0:
        pytest.skip("no padding")
    flip(tar, {"head": first - 500, "payload": first + size - 9, "padding": first + size, "end": -1}[place])
    code, said = verify(shards, capsys)
    assert code == 1
    assert "train-000000.tar: sha256 is" in said
    assert ("train-000000.tar: 1: " in said) == (place != "end")
    assert {"head": "header", "payload": "hash", "padding": "padding", "end": "two empty blocks"}[place] in said
    assert "train-000001" not in said


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def raise_accepted(value: dict[str, Any]) -> None:
    value["accepted"] += 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda out: (out / "train-000001.tar").unlink(), "train-000001.tar: the shard is missing; run"),
        (lambda out: (out / "train-000001.index").unlink(), "train-000001.index: the shard's index is missing"),
        (lambda out: (out / "train-000001.jsonl").unlink(), "train-000001.jsonl: missing"),
        (lambda out: (out / "train-000001.jsonl").write_text("{}\n"), "not a listing"),
        (lambda out: (out / "train-000001.tar").write_bytes(b"x"), "1 bytes, the manifest says"),
        (lambda out: flip(out / "train-000001.index", 70), "index is damaged"),
        (lambda out: (out / "train-000007.tar").write_bytes(b"x"), "train-000007.tar: a shard that train.json"),
        (lambda out: (out / "train.rejected.jsonl").unlink(), "train.rejected.jsonl: cannot be read"),
        (lambda out: edit_json(out / "train.json", raise_accepted), "accepted is 6"),
        (lambda out: (out / "train.plan.json").write_text("{}"), "not finished"),
    ],
)
def test_each_fault_is_named(
    shards: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], message: str
) -> None:
    harm(shards)
    code, said = verify(shards, capsys)
    assert code == 1
    assert message in said


def test_two_shards_with_one_key(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def twice(value: dict[str, Any]) -> None:
        value["shards"].append(dict(value["shards"][0], name="train-000002.tar"))
        value["accepted"] += 3

    for suffix in ("tar", "index", "jsonl"):
        (shards / f"train-000002.{suffix}").write_bytes((shards / f"train-000000.{suffix}").read_bytes())
    edit_json(shards / "train.json", twice)
    code, said = verify(shards, capsys)
    assert code == 1
    assert "train-000002.tar: 0: the key is also in train-000000.tar" in said


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shards", str(tmp_path / "none")]) == 2
    assert main(["--shards", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "no such folder" in error
    assert "no train.json" in error


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["train-000000.jsonl", "train-000000.index", "train-000000.tar", "train.rejected.jsonl"]
)
def test_a_pipe_in_the_place_of_a_file_is_a_fault(shards: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (shards / name).unlink()
    os.mkfifo(shards / name)
    assert main(["--shards", str(shards)]) == 1
    assert name in capsys.readouterr().out


def test_a_manifest_of_another_split_is_refused(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shards / "val.json").write_bytes((shards / "train.json").read_bytes())
    assert main(["--shards", str(shards)]) == 1
    assert "val.json: not a manifest that relic wrote (split is train, not val)" in capsys.readouterr().err
