"""Object stores: an S3 server on loopback, its faults, and the credentials that reach it."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from relic.errors import InputError
from relic.storage.download import download
from relic.storage.faults import MissingError, NetworkError, PermanentError
from relic.storage.objects import head, list_files, put_file, read_range
from relic.storage.spec import resolve_shards
from tests.conftest import write_shards
from tests.storage.http_shards import serve
from tests.storage.s3_server import S3Server, etag, forget_stores, serve_s3

ROOT = Path(__file__).resolve().parents[2]
PATTERN = "train-{000000..000002}.tar"

pytestmark = pytest.mark.timeout(60)


def test_a_bucket_of_shards_is_read_as_a_folder_of_them(tmp_path: Path, s3: S3Server) -> None:
    write_shards(tmp_path / "packed", counts=(7, 5, 1), side=64)
    local = resolve_shards(str(tmp_path / "packed"), "train")
    s3.put_folder("bucket/a set", {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()})
    remote = resolve_shards(f"s3://bucket/a set/{PATTERN}", "train")
    assert remote.fingerprint == local.fingerprint
    assert [tar.read_bytes() for tar in remote.tars] == [tar.read_bytes() for tar in local.tars]
    assert s3.requests["GET bucket/a set/train.json"] == 1
    s3.requests.clear()
    assert resolve_shards(f"s3://bucket/a set/{PATTERN}", "train").tars == remote.tars
    assert not s3.requests


def test_a_tar_without_manifest_in_a_bucket_is_indexed(tmp_path: Path, s3: S3Server) -> None:
    write_shards(tmp_path / "packed", counts=(7, 5, 1), side=64)
    s3.put_folder("bucket/plain", {tar.name: tar.read_bytes() for tar in (tmp_path / "packed").glob("*.tar")})
    assert resolve_shards(f"s3://bucket/plain/{PATTERN}", "train").samples == (7, 5, 1)
    with pytest.raises(InputError, match=r"^s3://bucket/plain/train-000003\.tar: there is no such file \(HTTP 404\)$"):
        resolve_shards("s3://bucket/plain/train-000003.tar", "train")


@pytest.mark.parametrize("size", [0, 10, (11 << 20) + 3])
def test_what_is_put_is_listed_and_read_back(tmp_path: Path, s3: S3Server, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "x").write_bytes(data)
    put_file(tmp_path / "x", "s3://bucket/run/last one.pt")
    s3.objects["bucket/runs/other"] = b"1"
    assert s3.objects["bucket/run/last one.pt"] == data
    assert not s3.uploads
    assert [(found.name, found.size) for found in list_files("s3://bucket/run")] == [("last one.pt", size)]
    found = head("s3://bucket/run/last one.pt")
    assert (found.size, found.etag) == (size, etag(data))
    if size:
        assert bytes(read_range("s3://bucket/run/last one.pt", 3, 7)) == data[3:10]
        assert s3.ranges == ["bytes=3-9"]
        with pytest.raises(PermanentError, match=r"last one\.pt: ends before byte [\d,]+; write the file there again$"):
            read_range("s3://bucket/run/last one.pt", size - 2, 3)


def test_a_read_takes_few_calls_of_python(s3: S3Server) -> None:
    """After the wait for an answer each costs many times as much as in a loop."""
    s3.objects["bucket/x"] = b"12345"
    read_range("s3://bucket/x", 1, 2)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        read_range("s3://bucket/x", 1, 2)
    finally:
        sys.setprofile(None)
    assert calls == ["read_range"]


def test_faults_are_one_line_each(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"^s3://bucket/x: there is no such file \(HTTP 404\)$"):
        read_range("s3://bucket/x", 0, 1)
    with pytest.raises(MissingError, match=r"^s3://bucket/x: there is no such file \(HTTP 404\)$"):
        head("s3://bucket/x")
    with pytest.raises(MissingError, match=r"^s3://other/x: there is no such bucket \(HTTP 404\)$"):
        read_range("s3://other/x", 0, 1)
    with pytest.raises(PermanentError, match=r"^s3:///x: names no bucket$"):
        head("s3:///x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHERKEY")
    forget_stores()
    with pytest.raises(
        PermanentError, match=r"^s3://bucket/x: .*not allow it \(HTTP 403, AccessDenied\); set AWS_ACCESS_KEY_ID"
    ) as caught:
        read_range("s3://bucket/x", 0, 1)
    assert "ANOTHERKEY" not in str(caught.value)
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://bucket/set#1", "s3://bucket/set: holds a ? or # after that; "),
        ("s3://bucket/set?1/x.tar", "s3://bucket/set: holds a ? or # after that; "),
        ("s3://bucket/a/../x.tar", "s3://bucket/a/../x.tar: a part of its path is empty, `.` or `..`; "),
        ("s3://bucket/a//x.tar", "s3://bucket/a//x.tar: a part of its path is empty, `.` or `..`; "),
        ("s3://[bucket/x.tar", "s3://[bucket/x.tar: not a URL; "),
        ("s3://bu cket/x.tar", "s3://bu cket/x.tar: not a URL that can be read; "),
        ("http://127.0.0.1:99999/x.tar", "http://127.0.0.1:99999/x.tar: not a URL that can be read; "),
        ("http://[::1/x.tar", "http://[::1/x.tar: not a URL that can be read; "),
        ("http://127.0.0.1:1/..%2fx.tar", "http://127.0.0.1:1/..%2fx.tar: not a URL that can be read; "),
    ],
)
def test_what_is_no_url_of_a_file_is_one_line(s3: S3Server, tmp_path: Path, url: str, what: str) -> None:
    """A name that would be cut at a # is not written: all files of such a folder would be one."""
    calls: list[Callable[[], object]] = [
        lambda: head(url),
        lambda: read_range(url, 0, 1),
        lambda: download(url, tmp_path / "x", lambda path: None),
    ]
    if url.startswith("s3"):
        calls += [lambda: list(list_files(url)), lambda: put_file(Path(__file__), url)]
    for call in calls:
        with pytest.raises(PermanentError) as caught:
            call()
        assert re.sub(r"(?<=tar)/(?=:)", "", str(caught.value)).startswith(what)
    assert not s3.objects


def test_a_listing_that_cannot_be_read_is_one_line(s3: S3Server) -> None:
    s3.objects["bucket/set/../x"] = b"1"
    with pytest.raises(PermanentError, match=r"^s3://bucket/set/: a name there has a part that is empty, `\.` or"):
        list(list_files("s3://bucket/set"))


def test_a_server_without_a_protocol_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(
        PermanentError, match=r"^AWS_ENDPOINT_URL: the URL of a server begins with http:// or https://$"
    ):
        head("s3://bucket/x")


def test_a_busy_store_is_asked_again_and_not_for_ever(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.objects["bucket/x"] = b"12345"
    s3.busy["bucket/x"] = 2
    assert bytes(read_range("s3://bucket/x", 1, 2)) == b"23"
    s3.requests.clear()
    s3.busy["bucket/x"] = 99
    with pytest.raises(NetworkError, match=r"^s3://bucket/x: .* in 4 attempts: .*\(HTTP 503, SlowDown\)$"):
        read_range("s3://bucket/x", 1, 2)
    assert s3.requests["GET bucket/x"] == 4


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("endpoint", "what"),
    [("http://nohost.invalid", "the host is not known"), ("http://127.0.0.1:1", "the host does not answer")],
)
def test_a_host_that_is_not_there(monkeypatch: pytest.MonkeyPatch, endpoint: str, what: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(NetworkError, match=rf"^s3://bucket/x: could not be reached: {what}$"):
        head("s3://bucket/x")
    with pytest.raises(NetworkError, match=rf"^s3://bucket/x\.tar: could not be fetched.*: {what}$"):
        resolve_shards("s3://bucket/x.tar", "train")


@pytest.mark.timeout(20)
def test_without_credentials_the_message_tells_which_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last place that credentials come from is the machine's own role; here nobody answers for it."""
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PermanentError, match=r"^s3://box/x: no credentials for s3://; set AWS_ACCESS_KEY_ID"):
        head("s3://box/x")
    with pytest.raises(PermanentError, match=r"^az://box/x: no credentials for az://; set AZURE_STORAGE_ACCOUNT_NAME"):
        head("az://box/x")


def test_a_public_bucket_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3() as server:
        server.objects["bucket/x"] = b"123"
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        assert bytes(read_range("s3://bucket/x", 0, 3)) == b"123"


def test_the_other_clouds_are_read_by_their_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3() as server:  # their requests for a file are those of S3
        server.objects["bucket/a/x y"] = b"0123456789"
        for name, value in (
            ("GOOGLE_BASE_URL", server.url),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("AZURE_ENDPOINT", server.url),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_SKIP_SIGNATURE", "true"),
        ):
            monkeypatch.setenv(name, value)
        for url in ("gs://bucket/a/x y", "az://bucket/a/x y"):
            assert bytes(read_range(url, 2, 3)) == b"234"
            assert head(url).size == 10


def test_a_web_server_is_read_in_parts_but_not_listed_nor_written(tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(b"0123456789")
    with serve(tmp_path) as server:
        server.versions["a%20b.tar"] = '"1"'
        (tmp_path / "a%20b.tar").write_bytes(b"0123456789")
        assert bytes(read_range(f"{server.url}//a%20b.tar?sig=S3CRET", 2, 3)) == b"234"
        server.versions.clear()
        with pytest.raises(PermanentError, match=r"a%20b\.tar: the server does not send parts of a file$"):
            read_range(f"{server.url}/a%20b.tar?sig=S3CRET", 2, 3)
        with pytest.raises(PermanentError, match="does not list its files; name them"):
            list(list_files(server.url))
        with pytest.raises(PermanentError, match="takes no files"):
            put_file(tmp_path / "a b.tar", f"{server.url}/x")


def _read_in_child(url: str) -> bytes:
    return bytes(read_range(url, 1, 2))


@pytest.mark.commands
def test_a_spawned_process_reads_after_its_parent_has(s3: S3Server) -> None:
    """A forked one would wait for ever: obstore's threads are not in it."""
    s3.objects["bucket/x"] = b"12345"
    assert _read_in_child("s3://bucket/x") == b"23"
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_read_in_child, ("s3://bucket/x",)).get(30) == b"23"


@pytest.mark.commands
def test_storage_needs_no_torch() -> None:
    code = "import sys, relic.storage.spec, relic.storage.objects; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
