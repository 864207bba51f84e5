"""--out_url: the files of a local run in an object store, with few tars on the disk at any time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prep import upload_shards, uploading, verify_shards
from prep.config import PrepConfig
from prep.make_shards import main
from relic.errors import InputError
from relic.storage.objects import put_file
from relic.storage.spec import resolve_shards
from tests.conftest import refusal
from tests.storage.s3_server import S3Server

URL = "s3://bucket/a set"
FLAGS = ("--size", "16", "--samples_per_shard", "2", "--max_bad", "0.5", "--workers", "1")

pytestmark = [pytest.mark.commands, pytest.mark.timeout(60)]


@pytest.fixture
def coco(make_coco: Callable[..., Path]) -> Path:
    folder = make_coco(train=11, val=3)
    (folder / "train2017" / "000000000004.jpg").write_bytes(b"bad")
    return folder


def run(coco: Path, out: Path, *flags: str) -> int:
    return main(["--coco_dir", str(coco), "--out_dir", str(out), *FLAGS, *flags])


def stored(s3: S3Server) -> dict[str, bytes]:
    return {name.removeprefix("bucket/a set/"): data for name, data in s3.objects.items()}


@pytest.fixture
def whole(coco: Path, tmp_path: Path, tasks_here: None) -> dict[str, bytes]:
    """The files of a local run."""
    assert run(coco, tmp_path / "whole") == 0
    return {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("parts", [(), ("1/2", "0/2")])
def test_the_store_gets_the_files_of_a_local_run(
    coco: Path, tmp_path: Path, s3: S3Server, whole: dict[str, bytes], parts: tuple[str, ...]
) -> None:
    commands: list[tuple[str, ...]] = [("--part", part) for part in parts]
    for flags in commands or [()]:
        assert "train.json" not in stored(s3)
        assert run(coco, tmp_path / "out", "--out_url", URL, *flags) == 0
    assert stored(s3) == whole
    puts = [name.rpartition("/")[2] for name in s3.requests if name.startswith("PUT ")]
    assert puts.index("train.json") > max(puts.index(name) for name in whole if name.startswith("train-"))
    assert not list((tmp_path / "out").glob("*.tar*"))
    remote = resolve_shards(f"{URL}/train-{{000000..000005}}.tar", "train")
    assert remote.fingerprint == resolve_shards(str(tmp_path / "whole"), "train").fingerprint
    s3.requests.clear()
    assert run(coco, tmp_path / "out", "--out_url", URL) == 0
    assert not [name for name in s3.requests if name.startswith("PUT ") and name.endswith(".tar")]


def test_one_tar_of_a_worker_is_here_at_a_time_and_a_stopped_run_goes_on(
    coco: Path, tmp_path: Path, s3: S3Server, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []

    def put(path: Path, url: str) -> str | None:
        seen.append(sorted(tar.name for tar in out.glob("*.tar")))
        if path.name == "train-000003.tar" and "train-000003.tar" not in written:
            written.append(path.name)
            raise ConnectionError("cut")
        return put_file(path, url)

    written: list[str] = []
    monkeypatch.setattr(uploading, "put_file", put)
    assert run(coco, out, "--out_url", URL) == 1
    s3.requests.clear()
    assert run(coco, out, "--out_url", URL) == 0
    assert max(map(len, seen)) == 1
    assert stored(s3) == whole
    again = sorted(name.rpartition("/")[2] for name in s3.requests if name.startswith("PUT ") and ".tar" in name)
    assert again == [*(f"train-00000{number}.tar" for number in (3, 4, 5)), "val-000000.tar", "val-000001.tar"]


def test_a_shard_that_was_lost_there_is_packed_again(
    coco: Path, tmp_path: Path, s3: S3Server, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(coco, out, "--out_url", URL) == 0
    del s3.objects["bucket/a set/train-000002.tar"]
    assert run(coco, out, "--out_url", URL) == 1
    assert f"{URL}/train-000002.tar: is not there as it was written; run the command again" in capsys.readouterr().err
    assert run(coco, out, "--out_url", URL) == 0
    assert stored(s3) == whole


def test_a_set_that_was_packed_here_is_written_there(
    coco: Path, tmp_path: Path, s3: S3Server, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(coco, tmp_path / "whole", "--out_url", URL) == 0
    assert stored(s3) == whole
    for flags in ((), ("--out_url", "s3://bucket/other")):
        assert run(coco, tmp_path / "whole", *flags) == 2
        assert f"--out_dir {tmp_path}/whole: its shards are at {URL}; give --out_url {URL}" in capsys.readouterr().err


def test_the_way_out_of_a_difference_is_one_that_is_allowed(
    coco: Path, tmp_path: Path, s3: S3Server, tasks_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """--overwrite is not, with --out_url."""
    out = ("--out_url", URL)
    assert run(coco, tmp_path / "out", *out) == 0
    way_out = "; use another --out_dir, and another --out_url\n"
    assert run(coco, tmp_path / "out", *out, "--seed", "1") == 2
    assert way_out in capsys.readouterr().err
    small, *_, large = sorted((coco / "train2017").iterdir(), key=lambda path: path.stat().st_size)[1:]
    large.write_bytes(small.read_bytes().ljust(large.stat().st_size, b"\0"))
    assert run(coco, tmp_path / "out", *out) == 1
    error = capsys.readouterr().err
    assert "1 of the train images changed since they were packed" in error and way_out in error


def test_its_folder_tells_where_the_shards_are(
    coco: Path, tmp_path: Path, s3: S3Server, tasks_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert run(coco, folder, "--out_url", URL) == 0
    said = f"{folder}/train-000000.tar: --out_url wrote it to {URL}; give that URL"
    with pytest.raises(InputError) as caught:
        resolve_shards(str(folder), "train")
    assert str(caught.value) == said
    capsys.readouterr()
    assert upload_shards.main(["--shards", str(folder), "--url", "s3://bucket/other"]) == 1
    assert f"error: {said}\n" in capsys.readouterr().err
    assert verify_shards.main(["--shards", str(folder)]) == 1
    assert f"{said}\n" in capsys.readouterr().out


def test_a_set_of_another_folder_is_not_replaced(
    coco: Path, tmp_path: Path, s3: S3Server, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(coco, tmp_path / "out", "--out_url", URL, "--part", "0/2") == 0
    before = stored(s3)
    for out in ("other", "whole"):
        assert run(coco, tmp_path / out, "--out_url", URL) == 2
        assert f"--out_url {URL}: holds train shards that --out_dir {tmp_path}/{out} has not" in capsys.readouterr().err
    assert stored(s3) == before


def test_what_is_no_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(lambda: PrepConfig(Path("x"), out_url="https://host/set"), capsys)
    assert said == "--out_url https://host/set: give a URL of s3, gs or az, such as s3://bucket/run"
    said = refusal(lambda: PrepConfig(Path("x"), out_url="s3://bucket/set#1"), capsys)
    assert said == "--out_url s3://bucket/set: holds a ? or # after that; choose a name without them"
    assert "--out_url: not with --overwrite" in refusal(
        lambda: PrepConfig(Path("x"), out_url=URL, overwrite=True), capsys
    )
