"""The copy of a run in an object store: what is written when, and which side wins."""

import json
import logging
import threading
from pathlib import Path

import pytest

from relic.errors import InputError, RefusedError
from relic.storage import claim, objects, run_copy
from relic.storage.faults import PermanentError
from relic.storage.run_copy import RunCopy, check_store, fetch_run, holds, remove
from tests.storage.s3_server import S3Server

URL = "s3://bucket/runs/one"
NAMES = ("metrics.jsonl", "best.pt")

pytestmark = pytest.mark.timeout(60)


def fetch(folder: Path) -> dict[str, bytes]:
    fetch_run(URL, folder, "last.pt", NAMES)
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def stored(s3: S3Server) -> dict[str, bytes]:
    names = {name: name.removeprefix("bucket/runs/one/") for name in s3.objects}
    return {names[name]: data for name, data in s3.objects.items() if names[name] != claim.NAME}


def save(folder: Path, **files: bytes) -> None:
    folder.mkdir(exist_ok=True)
    with RunCopy(folder, URL) as copy:
        for name, data in files.items():
            (folder / f"{name}.pt").write_bytes(data)
        copy.put(*(f"{name}.pt" for name in files))


def test_what_one_machine_has_written_another_one_goes_on_from(tmp_path: Path, s3: S3Server) -> None:
    save(tmp_path / "a", best=b"B1", last=b"L1")
    assert stored(s3) == {"best.pt": b"B1", "last.pt": b"L1"}
    assert fetch(tmp_path / "b") == {"best.pt": b"B1", "last.pt": b"L1"}
    save(tmp_path / "b", last=b"L2")
    assert stored(s3) == {"best.pt": b"B1", "last.pt": b"L2"}
    assert fetch(tmp_path / "a") == {"best.pt": b"B1", "last.pt": b"L2"}


def test_a_file_that_was_not_yet_copied_is_kept(tmp_path: Path, s3: S3Server) -> None:
    save(tmp_path / "a", last=b"L1")
    (tmp_path / "a" / "last.pt").write_bytes(b"L2")  # killed before the upload
    assert fetch(tmp_path / "a") == {"last.pt": b"L2"}


def test_an_empty_store_leaves_the_folder_as_it_is(tmp_path: Path, s3: S3Server) -> None:
    fetch_run(URL, tmp_path / "a", "last.pt", NAMES)
    assert not (tmp_path / "a").exists()


def test_another_run_in_the_folder_is_not_replaced(tmp_path: Path, s3: S3Server) -> None:
    save(tmp_path / "a", last=b"L1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "last.pt").write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"^{URL}: holds another run than .*/b; choose another"):
        fetch(tmp_path / "b")
    assert (tmp_path / "b" / "last.pt").read_bytes() == b"mine"


def test_a_failed_upload_ends_no_run_and_is_tried_again(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_copy, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(objects, "_RETRIES", 0)
    (tmp_path / "last.pt").write_bytes(b"L1")
    s3.busy["bucket/runs/one/last.pt"] = 2
    caplog.set_level(logging.WARNING)
    with RunCopy(tmp_path, URL) as copy:
        copy.put("last.pt", "none.pt")
        for _ in range(400):
            if stored(s3):
                break
            threading.Event().wait(0.02)
    assert stored(s3) == {"last.pt": b"L1"}
    assert caplog.text.count("HTTP 503, SlowDown); trying again") == 2


def test_what_could_not_be_written_is_an_error_at_the_end(tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "last.pt").write_bytes(b"L1")
    with pytest.raises(PermanentError, match=r"last\.pt: there is no such bucket"), RunCopy(tmp_path, URL) as copy:
        s3.buckets.clear()
        copy.put("last.pt")
    s3.buckets.add("bucket")
    with pytest.raises(ZeroDivisionError), RunCopy(tmp_path, URL) as copy:
        s3.buckets.clear()
        copy.put("last.pt")
        raise ZeroDivisionError
    s3.buckets.add("bucket")


def test_a_second_run_to_the_url_is_refused_and_a_run_that_was_replaced_writes_no_more(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_BEAT_SECONDS", 0.02)
    (tmp_path / "last.pt").write_bytes(b"L1")
    with pytest.raises(InputError, match="process 7 of far writes there now"), RunCopy(tmp_path, URL) as copy:
        with pytest.raises(RefusedError, match=rf"^--save_url {URL}: process \d+ of .* writes there"):
            RunCopy(tmp_path / "b", URL)
        with s3.lock:
            name = f"bucket/runs/one/{claim.NAME}"
            s3.objects[name] = json.dumps({**json.loads(s3.objects[name]), "host": "far", "pid": 7}).encode()
        copy._claim._thread.join(30)
        copy.put("last.pt")
    assert not stored(s3)


def test_a_copy_is_found_and_removed(tmp_path: Path, s3: S3Server) -> None:
    assert not holds(URL, ("last.pt", "best.pt"))
    save(tmp_path / "a", best=b"B1", other=b"O")
    assert holds(URL, ("last.pt", "best.pt"))
    remove(URL, ("last.pt", "best.pt"))
    assert stored(s3) == {"other.pt": b"O"}


@pytest.mark.parametrize("url", ["http://host/run", "pipe:cat", "folder", "ftp://host/x"])
def test_what_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"^--save_url .*: give a URL of s3, gs or az"):
        check_store(url, "--save_url")
