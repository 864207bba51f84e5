"""--coco_dir at a URL: the files of a run on a folder, and the faults of a store."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prep import images as prep_images
from prep.config import PrepConfig
from prep.images import LocalImages, StoredImages
from prep.make_shards import main
from relic.pictures.listing import list_sources
from relic.pictures.reasons import Unreadable
from relic.storage import objects
from relic.storage.objects import read_listed
from tests.conftest import refusal
from tests.storage.s3_server import S3Server, forget_stores

ROOT = Path(__file__).resolve().parents[2]
URL = "s3://bucket/my images"
FLAGS = ("--size", "16", "--samples_per_shard", "3", "--max_bad", "0.5")
ODD_NAMES = ("a b#1.JPG", "50%.jpg", "what?.jpg", "deep/é/x.jpeg", "deep/._x.jpg", "a&b<c>.jpg")
Digests = Callable[[Path], dict[str, str]]

pytestmark = [pytest.mark.commands, pytest.mark.timeout(90)]


@pytest.fixture
def coco(make_coco: Callable[..., Path]) -> Path:
    """Good images, some with odd names, and bad ones."""
    folder = make_coco(train=11, val=3)
    train = folder / "train2017"
    for number, name in enumerate(ODD_NAMES):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_bytes((train / f"{number:012d}.jpg").read_bytes())
    (train / "000000000004.jpg").write_bytes(b"bad")
    (train / "000000000005.jpg").write_bytes(b"")
    (train / "notes.txt").write_text("no image")
    return folder


def put(s3: S3Server, coco: Path) -> None:
    for path in coco.rglob("*"):
        if path.is_file():
            s3.objects[f"bucket/my images/{path.relative_to(coco)}"] = path.read_bytes()
    s3.objects["bucket/my images/train2017/"] = b""  # as consoles make folders
    s3.objects["bucket/my images/train2017 old/x.jpg"] = b"not of this folder"


def run(coco: Path | str, out: Path, *flags: str) -> int:
    return main(["--coco_dir", str(coco), "--out_dir", str(out), *FLAGS, *flags])


@pytest.fixture
def whole(coco: Path, tmp_path: Path, s3: S3Server, digests: Digests, tasks_here: None) -> dict[str, str]:
    """The sha256 of the files of a run on the folder, which is in the store now."""
    assert run(coco, tmp_path / "whole") == 0
    put(s3, coco)
    return digests(tmp_path / "whole")


@pytest.mark.parametrize("flags", [(), ("--crop", "random", "--crops_per_image", "2", "--encoding", "jpg")])
def test_the_files_are_those_of_a_run_on_the_folder(
    coco: Path, tmp_path: Path, s3: S3Server, digests: Digests, tasks_here: None, flags: tuple[str, ...]
) -> None:
    put(s3, coco)
    assert run(coco, tmp_path / "whole", *flags) == 0
    assert run(URL, tmp_path / "out", *flags) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert "train.rejected.jsonl" in digests(tmp_path / "out")
    images = [name for name in s3.requests if name.endswith((".jpg", ".JPG", ".jpeg"))]
    assert {s3.requests[name] for name in images} == {1}
    s3.requests.clear()
    assert run(URL, tmp_path / "out", *flags) == 0
    assert not [name for name in s3.requests if name.endswith(".jpg")]


def test_a_change_of_the_place_is_no_change_of_the_images(
    coco: Path, tmp_path: Path, whole: dict[str, str], digests: Digests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(URL, tmp_path / "whole") == 0
    assert "train: already packed" in capsys.readouterr().out
    assert digests(tmp_path / "whole") == whole


def test_parts_and_a_store_for_the_shards(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], digests: Digests
) -> None:
    for part in ("1/2", "0/2"):
        assert run(URL, tmp_path / "out", "--part", part, "--out_url", "s3://bucket/shards") == 0
    (tmp_path / "stored").mkdir()
    for name, data in s3.objects.items():
        if name.startswith("bucket/shards/"):
            (tmp_path / "stored" / name.rpartition("/")[2]).write_bytes(data)
    assert digests(tmp_path / "stored") == whole


def command(out: Path, *flags: str) -> list[str]:
    words = ["--coco_dir", URL, "--out_dir", str(out), *FLAGS, *flags]
    return [sys.executable, str(ROOT / "prep" / "make_shards.py"), *words]


def test_workers_read_it_and_a_run_that_was_killed_goes_on(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], digests: Digests
) -> None:
    s3.stalls = {"bucket/my images/train2017/what?.jpg"}  # of the last shard
    out = tmp_path / "out"
    first = subprocess.Popen(command(out, "--workers", "2"), stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while len(list(out.glob("train-*.done.json"))) < 5:
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        first.kill()
        first.communicate()
    s3.stalls.clear()
    s3.requests.clear()
    ended = subprocess.run(command(out, "--workers", "2"), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert digests(out) == whole
    assert s3.requests["GET bucket/my images/train2017/000000000000.jpg"] == 0


def test_a_store_that_fails_is_one_line(
    tmp_path: Path,
    s3: S3Server,
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(objects, "_PATIENT_RETRIES", 1)
    name = "train2017/000000000009.jpg"
    s3.busy[f"bucket/my images/{name}"] = 99
    assert run(URL, tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"prep/make_shards.py: error: {URL}/{name}: could not be reached in 2 attempts: ")
    assert "S3CRET" not in error


def test_answers_that_are_cut_and_a_busy_store_change_no_byte(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], digests: Digests
) -> None:
    cuts = Counter({f"bucket/my images/train2017/{number:012d}.jpg": 2 for number in (0, 3, 8)})
    s3.busy = Counter({f"bucket/my images/val2017/{number:012d}.jpg": 2 for number in (0, 2)})

    def shorten(name: str, length: int) -> int:
        cuts[name] -= 1
        return length // 2 if cuts[name] >= 0 else length

    s3.shorten = shorten
    assert run(URL, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == whole
    assert not [name for name, left in cuts.items() if left > 0]
    assert not [name for name, left in s3.busy.items() if left > 0]


def test_an_image_that_changes_after_the_listing_ends_the_run(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "train2017/000000000009.jpg"
    before = s3.objects[f"bucket/my images/{name}"]
    for after, what in ((before[:-1] + b"x", "changed"), (before + b"x", "changed"), (None, "deleted")):
        with after_the_listing(s3, f"bucket/my images/{name}", after):
            assert run(URL, tmp_path / "out") == 1
        assert f"'{URL}/{name}': {what} while it was packed; run the command again" in capsys.readouterr().err
        s3.objects[f"bucket/my images/{name}"] = before
    assert run(URL, tmp_path / "out") == 0


@contextmanager
def after_the_listing(s3: S3Server, name: str, data: bytes | None) -> Iterator[None]:
    """Replace or remove an object when the first image of the split is read."""
    read = read_listed

    def change_and_read(folder: str, path: str, etag: str | None) -> bytes | None:
        s3.objects.pop(name, None)
        if data is not None:
            s3.objects[name] = data
        return read(folder, path, etag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prep_images, "read_listed", change_and_read)
        yield


def test_an_image_that_changed_at_equal_length_is_refused_and_overwrite_packs_it(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], digests: Digests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(URL, tmp_path / "out") == 0
    name = "bucket/my images/train2017/000000000000.jpg"
    s3.changed[name] = "2999-01-01T00:00:00Z"  # copied, with the same bytes
    assert run(URL, tmp_path / "out") == 0
    s3.objects[name] = b"\0" * len(s3.objects[name])
    capsys.readouterr()
    assert run(URL, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"1 of the train images changed since they were packed, the first is '{URL}/train2017/0" in error
    assert run(URL, tmp_path / "out", "--overwrite") == 0
    rejected = [json.loads(line)["source"] for line in (tmp_path / "out/train.rejected.jsonl").read_text().splitlines()]
    assert rejected == [f"00000000000{number}.jpg" for number in (0, 4, 5)]


def test_images_that_were_added_are_told(
    tmp_path: Path, s3: S3Server, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(URL, tmp_path / "out") == 0
    s3.objects["bucket/my images/train2017/more.jpg"] = b"1"
    assert run(URL, tmp_path / "out") == 2
    assert "train was packed differently (images were added or removed" in capsys.readouterr().err


def test_what_cannot_be_listed_is_one_line(
    tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.objects["bucket/only/train2017/x.jpg"] = b"1"
    s3.objects["bucket/empty/train2017/x.txt"] = b"1"
    for url, code, message in (
        ("s3://bucket/nothing", 2, "--coco_dir s3://bucket/nothing: holds no folder train2017"),
        ("s3://bucket/only", 2, "holds no folder val2017; --include_val false packs train2017 alone"),
        ("s3://other/x", 2, "--coco_dir s3://other/x/train2017/: there is no such bucket (HTTP 404)"),
        ("s3:///x", 2, "--coco_dir s3:///x: names no bucket"),
        ("s3://bucket/coco#1", 2, "--coco_dir s3://bucket/coco: holds a ? or # after that; "),
        ("https://me:S3CRET@host/coco?S3CRET", 2, "--coco_dir https://host/coco: images are listed in s3://, gs://"),
        ("pipe:cat S3CRET", 2, "no such folder"),
        ("ftp://host/coco", 2, "--coco_dir ftp://host/coco: images are listed in s3://"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(objects, "_RETRIES", 0)
            try:
                assert run(url, tmp_path / "out") == code
            except SystemExit as end:
                assert end.code == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run("s3://bucket/empty", tmp_path / "out", "--include_val", "false") == 2
    assert "--coco_dir s3://bucket/empty: train2017 holds no image" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHERKEY")
    forget_stores()
    assert run("s3://bucket/only/", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "--coco_dir s3://bucket/only/train2017/: the server does not allow it (HTTP 403, AccessDenied)" in error
    assert "S3CRET" not in error and "ANOTHERKEY" not in error


def test_shards_are_not_written_among_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("s3://bucket/coco/train2017", "s3://bucket/coco/val2017/shards/"):
        said = refusal(lambda url=url: PrepConfig("s3://bucket/coco/", out_url=url), capsys)  # type: ignore[misc]
        assert said == f"--out_url {url}: is inside the images of --coco_dir s3://bucket/coco/"
    PrepConfig("s3://bucket/coco", out_url="s3://bucket/coco/train2017 shards")


def test_listings_are_equal(coco: Path, s3: S3Server) -> None:
    put(s3, coco)
    listed = StoredImages(f"{URL}/train2017").sources()
    assert [(source.path, source.size) for source in listed] == [
        (source.path, source.size) for source in list_sources(coco / "train2017")
    ]
    folder = LocalImages(coco / "train2017")
    for source in listed:
        if source.size:
            assert read_listed(f"{URL}/train2017", source.path, source.version) == folder.read(source)


def test_images_are_asked_for_ahead_in_bounded_memory(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of 10 bytes 5 may be asked for: the one that is read, and 4 others. A larger one comes alone."""
    monkeypatch.setattr(prep_images, "_AHEAD_BYTES", 50)
    sizes = [10] * 20 + [70, 0, 600 << 20, 10]
    for number, size in enumerate(sizes):
        s3.objects[f"bucket/my images/{number:03d}.jpg"] = bytes(min(size, 70))
    store = StoredImages(URL)
    sources = [source._replace(size=size) for source, size in zip(store.sources(), sizes, strict=True)]
    asked, lock, read = [], threading.Lock(), read_listed

    def note_and_read(folder: str, path: str, etag: str | None) -> bytes | None:
        with lock:
            asked.append(path)
        return read(folder, path, etag)

    monkeypatch.setattr(prep_images, "read_listed", note_and_read)
    with store.ahead(sources) as images:
        for number, source in enumerate(sources):
            if source.size in (0, 600 << 20):
                with pytest.raises(Unreadable, match="empty file" if not source.size else "larger than 512 MiB"):
                    images.read(source)
                continue
            assert len(images.read(source)) == source.size
            assert set(asked) <= {f"{n:03d}.jpg" for n in range(number + 5)}
    assert len(asked) == len(set(asked)) == 23


def test_many_images_are_asked_for_at_a_time(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image comes before eight were asked for: one after the other would wait for ever."""
    for number in range(16):
        s3.objects[f"bucket/my images/{number:03d}.jpg"] = b"1"
    together, read = threading.Barrier(8, timeout=20), read_listed

    def wait_and_read(folder: str, path: str, etag: str | None) -> bytes | None:
        together.wait()
        return read(folder, path, etag)

    monkeypatch.setattr(prep_images, "read_listed", wait_and_read)
    store = StoredImages(URL)
    sources = store.sources()
    with store.ahead(sources) as images:
        assert [images.read(source) for source in sources] == [b"1"] * 16
