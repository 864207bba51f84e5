"""Packed shards written to an object store, and read from there."""

from pathlib import Path

import pytest

from prep.upload_shards import main
from relic.storage.spec import resolve_shards
from tests.conftest import write_shards
from tests.storage.s3_server import S3Server

URL = "s3://bucket/a set"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_shards(tmp_path / "packed", counts=(4, 3, 2), side=64)
    write_shards(tmp_path / "packed", counts=(2,), side=64, split="val")
    return tmp_path / "packed"


def upload(packed: Path) -> int:
    return main(["--shards", str(packed), "--url", URL])


def puts(s3: S3Server) -> list[str]:
    return [name.rpartition("/")[2] for name in s3.requests if name.startswith("PUT ")]


def test_what_is_written_is_read_as_the_folder_is(packed: Path, s3: S3Server) -> None:
    assert upload(packed) == 0
    assert puts(s3)[-1] == "val.json"
    for split, last in (("train", 2), ("val", 0)):
        remote = resolve_shards(f"{URL}/{split}-{{000000..{last:06d}}}.tar", split)
        assert remote.fingerprint == resolve_shards(str(packed), split).fingerprint


def test_an_upload_that_was_stopped_goes_on(
    packed: Path, s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.busy["bucket/a set/train-000001.tar"] = 4
    assert upload(packed) == 1
    assert "train-000001.tar: could not be reached in 4 attempts: the server fails" in capsys.readouterr().err
    assert "train.json" not in puts(s3)
    s3.requests.clear()
    assert upload(packed) == 0
    assert "train: 1 shard written, 2 there before\nval: 1 shard written, 0 there before" in capsys.readouterr().out
    assert "train-000000.tar" not in puts(s3)
    s3.requests.clear()
    del s3.objects["bucket/a set/train-000002.tar"]
    assert upload(packed) == 0
    assert sorted(puts(s3)) == ["train-000002.index", "train-000002.tar", "train.json", "val.json"]


def test_a_damaged_shard_is_not_written(packed: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    with (packed / "train-000002.tar").open("r+b") as file:
        file.write(b"x")
    assert upload(packed) == 1
    assert "train-000002.tar: differs from its manifest; pack it again" in capsys.readouterr().err
    assert "train.json" not in puts(s3)


def test_what_cannot_be_written_is_refused(
    packed: Path, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, url, message in (
        (packed, "http://host/set", "--url http://host/set: give a URL of s3, gs or az"),
        (tmp_path, URL, "no train.json and no val.json; prep/make_shards.py writes them"),
    ):
        assert main(["--shards", str(folder), "--url", url]) == 2
        assert message in capsys.readouterr().err
    (packed / "val.plan.json").touch()
    assert upload(packed) == 2
    assert "packing val was not finished; pack it first" in capsys.readouterr().err
    assert not s3.objects
