"""A checkpoint behind a URL: fetched once per version, checked, and given to the commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from relic.errors import InputError
from relic.storage.remote_file import find_file, local_name
from tests.storage.http_shards import serve
from tests.storage.s3_server import S3Server

pytestmark = pytest.mark.timeout(60)
URL = "s3://bucket/run/last.pt"


def found(url: str = URL) -> bytes:
    find_file(url, flag="--checkpoint", otherwise="give one")
    return Path(local_name(url)).read_bytes()


def test_a_file_is_fetched_once_per_version(s3: S3Server) -> None:
    s3.objects["bucket/run/last.pt"] = b"one" * 1000
    assert found() == b"one" * 1000
    sent = s3.sent
    assert found() == b"one" * 1000
    assert s3.sent == sent
    s3.objects["bucket/run/last.pt"] = b"two"
    assert found() == b"two"
    assert Path(local_name(URL)).name == "last.pt"


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(s3: S3Server) -> None:
    s3.objects["bucket/run/last.pt"] = b"one" * 1000
    found()
    Path(local_name(URL)).write_bytes(b"ONE" * 1000)
    assert found() == b"one" * 1000


def test_without_a_version_it_is_fetched_each_time(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"1")
    with serve(tmp_path) as server:
        url = f"{server.url}/x.pt"
        assert found(url) == b"1"
        (tmp_path / "x.pt").write_bytes(b"2")
        assert found(url) == b"2"


def test_files_of_one_name_from_two_folders_are_two(s3: S3Server) -> None:
    s3.objects.update({"bucket/a/last.pt": b"a", "bucket/b/last.pt": b"b"})
    assert [found(f"s3://bucket/{folder}/last.pt") for folder in "aba"] == [b"a", b"b", b"a"]


def test_what_is_not_there_names_the_flag(s3: S3Server, tmp_path: Path) -> None:
    for text, message in (
        (URL, rf"^--checkpoint {URL}: there is no such file \(HTTP 404\)$"),
        ("pipe:cat x.pt", "^--checkpoint pipe:cat ...: give a file, or a URL of http, https, s3, gs or az$"),
        (f"{tmp_path}/x.pt", r"^--checkpoint .*x\.pt: no such file; give one$"),
    ):
        with pytest.raises(InputError, match=message):
            found(text)
    assert local_name("a/b.pt") == "a/b.pt"


@pytest.mark.torch
@pytest.mark.commands
def test_codec_and_crops_are_evaluated_from_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    from evaluate.run import main
    from relic.codec.pretrained import EMBEDDED_FILE
    from tests.conftest import write_shards

    write_shards(tmp_path / "packed", counts=(2,), side=64, split="val")
    s3.put_folder("bucket/set", {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()})
    s3.objects["bucket/run/small.pt"] = EMBEDDED_FILE.read_bytes()
    results: list[dict[str, Any]] = []
    for checkpoint, shards in (
        ("s3://bucket/run/small.pt", "s3://bucket/set/val-000000.tar"),
        ("embedded", str(tmp_path / "packed")),
    ):
        out = tmp_path / str(len(results))
        flags = ["--checkpoint", checkpoint, "--shards", shards, "--out", str(out), "--workers", "1"]
        assert main([*flags, "--bitstream", "false", "--references", "false", "--device", "cpu"]) == 0
        results.append(json.loads((out / "metrics.json").read_text())["summary"][0])
    assert results[0]["checkpoint"] == "s3://bucket/run/small.pt"
    assert results[0]["label"] == "small"
    assert results[0]["psnr_db"] == results[1]["psnr_db"]
