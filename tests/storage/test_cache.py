"""Shards behind URLs and patterns: a real web server, cut transfers, killed readers. Keys must be those packed."""

import base64
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.storage import download as download_module
from relic.storage import pipes, stores
from relic.storage.faults import NetworkError, PermanentError
from relic.storage.spec import resolve_shards
from tests.conftest import write_shards
from tests.storage.http_shards import ShardServer, serve

ROOT = Path(__file__).resolve().parents[2]
PATTERN = "train-{000000..000002}.tar"
KEYS = [f"train{number:05d}" for number in range(13)]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.05)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_shards(tmp_path / "packed", counts=(7, 5, 1), side=64)
    return tmp_path / "packed"


def without_ours(folder: Path) -> None:
    """Leave only what any WebDataset has: tars."""
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def keys_of(spec: str, split: str = "train") -> list[str]:
    shards = resolve_shards(spec, split)
    with ShardLoader(shards, batch_size=4) as loader:
        return [key for batch in loader.batches(eval_batches(shards.num_samples, 4, 0, 1)) for key in batch.keys]


def cached(pattern: str = "*") -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"], "relic", "shards").glob(f"*/{pattern}"))


def assert_cache_holds(packed: Path) -> None:
    """Whole copies of the tars, and no temporary file."""
    assert not cached("*.tmp")
    for tar in cached("*.tar"):
        assert tar.read_bytes() == (packed / tar.name).read_bytes()


@pytest.mark.parametrize("ours", [True, False])
def test_urls_are_fetched_once_and_read_as_local_shards(packed: Path, ours: bool) -> None:
    fingerprint = resolve_shards(str(packed), "train").fingerprint
    if not ours:
        without_ours(packed)
    with serve(packed) as server:
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
        assert all(server.requests[f"train-{number:06d}.tar"] == 1 for number in range(3))
        server.requests.clear()
        shards = resolve_shards(f"{server.url}/{PATTERN}", "train")
        assert not server.requests
    assert (shards.fingerprint == fingerprint) == ours  # without the manifest the tars have another one
    assert len(cached("*.tar")) == len(cached("*.index")) == 3
    assert_cache_holds(packed)
    if ours:
        assert all(index.read_bytes() == (packed / index.name).read_bytes() for index in shards.indexes)


@pytest.mark.parametrize("ours", [True, False])
def test_a_transfer_cut_in_the_middle_is_tried_again(packed: Path, ours: bool) -> None:
    if not ours:
        without_ours(packed)
    with serve(packed) as server:
        server.cuts["train-000001.tar"] = 2
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
        assert server.requests["train-000001.tar"] == 3
    assert_cache_holds(packed)


def test_a_transfer_cut_every_time_is_an_error_and_the_next_start_goes_on(packed: Path) -> None:
    with serve(packed) as server:
        server.cuts["train-000001.tar"] = 99
        with pytest.raises(
            NetworkError, match=r"http://127\S+/train-000001\.tar: could not be fetched in 3 attempts: the conn.* cut"
        ):
            keys_of(f"{server.url}/{PATTERN}")
        assert_cache_holds(packed)
        assert [tar.name for tar in cached("*.tar")] == ["train-000000.tar", "train-000002.tar"]
        server.cuts.clear()
        server.requests.clear()
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
        assert server.requests["train-000001.tar"] == 1
        assert not server.requests["train-000000.tar"]
    assert_cache_holds(packed)


def start_reader(spec: str) -> "subprocess.Popen[str]":
    code = f"from relic.storage.spec import resolve_shards; print(resolve_shards({spec!r}, 'train').num_samples)"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_reader_killed_in_the_middle_of_a_shard(packed: Path) -> None:
    with serve(packed) as server:
        server.stalls.add("train-000001.tar")
        reader = start_reader(f"{server.url}/{PATTERN}")
        assert server.stalled.wait(30)
        time.sleep(0.3)
        reader.send_signal(signal.SIGKILL)
        reader.wait(10)
        assert "train-000001.tar" not in [path.name for path in cached()]
        server.stalls.clear()
        server.release.set()
        server.requests.clear()
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
        assert server.requests["train-000001.tar"] == 1
    assert_cache_holds(packed)


def test_a_host_that_stops_sending_is_an_error(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STALL_SECONDS", 0.3)
    with serve(packed) as server:
        server.stalls.add("train-000001.tar")
        with pytest.raises(NetworkError, match=r"train-000001\.tar: could not be fetched.*does not answer in time"):
            keys_of(f"{server.url}/{PATTERN}")
    assert_cache_holds(packed)


def test_processes_share_the_cache(packed: Path) -> None:
    with serve(packed) as server:
        readers = [start_reader(f"{server.url}/{PATTERN}") for _ in range(2)]
        assert [reader.communicate(timeout=50)[0].strip() for reader in readers] == ["13"] * 2
        assert all(server.requests[f"train-{number:06d}.tar"] == 1 for number in range(3))
    assert_cache_holds(packed)


@pytest.mark.timeout(20)
def test_what_the_server_does_not_have_is_named_at_once(packed: Path) -> None:
    (packed / "train-000001.tar").unlink()
    with serve(packed) as server:
        with pytest.raises(InputError, match=r"http://127\S+/train-000001\.tar: there is no such file \(HTTP 404\)"):
            keys_of(f"{server.url}/{PATTERN}")
        assert server.requests["train-000001.tar"] == 1
    with pytest.raises(NetworkError, match=r"http://127\S+: could not be .*the host does not answer"):
        keys_of(f"{server.url}/train-000001.tar")


def test_a_shard_that_differs_from_its_manifest_is_refused(packed: Path) -> None:
    tar = packed / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    with serve(packed) as server, pytest.raises(InputError, match=r"train-000001\.tar: .*manifest.*sha256"):
        keys_of(f"{server.url}/{PATTERN}")
    assert_cache_holds(packed)
    assert not [path for path in cached("*000001*") if path.suffix != ".lock"]


def test_shards_packed_anew_are_fetched_anew_when_one_is_missing(packed: Path) -> None:
    with serve(packed) as server:
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
        shutil.rmtree(packed)
        write_shards(packed, counts=(7, 5, 1), side=64, seed=9)
        cached("train-000002.tar")[0].unlink()
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
    assert_cache_holds(packed)


def test_a_plain_webdataset_with_a_fault_is_fetched_once_and_named(packed: Path) -> None:
    with tarfile.open(packed / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with serve(packed) as server:
        with pytest.raises(InputError, match=r"http://127\S+/x\.tar: sample a: holds no image"):
            keys_of(f"{server.url}/x.tar")
        assert server.requests["x.tar"] == 1
    assert not cached("*.tar")


def test_pages_in_place_of_index_and_manifest(packed: Path) -> None:
    for path in (*packed.glob("*.index"), packed / "train.json"):
        path.write_text("<html>not here</html>")
    with serve(packed) as server:
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS


def test_pipes(packed: Path) -> None:
    without_ours(packed)
    assert keys_of(f"pipe:cat {packed}/{PATTERN}") == KEYS
    assert keys_of(f"pipe:cat {packed}/{PATTERN} | cat", "val") == KEYS
    with pytest.raises(
        InputError, match=r"pipe:head .*000000\.tar: could not be fetched in 3 attempts: sample train00004: .*cut"
    ):
        keys_of(f"pipe:head -c 70000 {packed}/train-00000{{0,1}}.tar")
    with pytest.raises(NetworkError, match=r"pipe:cat missing\.tar: could not be .* exit code 1"):
        keys_of("pipe:cat missing.tar")
    assert not cached("*.tmp")


def test_a_scheme_that_relic_does_not_read_names_the_way_out() -> None:
    for url in ("ftp://host/a.tar", "nosuch://a/b.tar"):
        with pytest.raises(PermanentError, match=rf"^{url}: relic reads http://, .*s3://.*; .* pipe:curl -f URL$"):
            keys_of(url)


def test_patterns_of_local_tars(packed: Path) -> None:
    assert keys_of(f"{packed}/{PATTERN}") == KEYS
    assert keys_of(f"file://{packed}/train-00000{{1,0}}.tar") == [*KEYS[7:12], *KEYS[:7]]
    assert keys_of(f"{packed}/train-000002.tar") == KEYS[12:]
    for spec, message in (
        (f"{packed}/train-{{000002..000003}}.tar", r"--shards .*train-000003\.tar: no such tar"),
        (f"{packed}/train-{{000002", "unbalanced braces"),
        (str(packed / "none"), r"--shards .*none: no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            resolve_shards(spec, "train")
    for spec in (f"{packed}/{PATTERN}", f"http://127.0.0.1:1/{PATTERN}"):
        with pytest.raises(InputError, match=r"names no val shard; val shards are called val-\*\.tar"):
            resolve_shards(spec, "val")


def test_a_manifest_from_a_server_reaches_no_file_outside_the_cache(packed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("thesis.tar", "thesis.index", "notes.txt"):
        (home / name).write_text("mine")
    good = (packed / "train.json").read_text()
    tar = (packed / "train-000000.tar").read_bytes()
    for path in (f"{home}/thesis.tar", f"{home}/notes.txt", "../" * 20 + str(home)[1:] + "/thesis.tar"):
        value = json.loads(good)
        value["shards"].append({"name": path, "samples": 1, "bytes": 1024, "sha256": "0" * 64})
        (packed / "train.json").write_text(json.dumps(value))
        (packed / "train-000000.tar").unlink()
        with serve(packed) as server:
            with pytest.raises(InputError, match="there is no such file"):
                keys_of(f"{server.url}/{PATTERN}")
            (packed / "train.json").write_text(good)
            (packed / "train-000000.tar").write_bytes(tar)
            assert keys_of(f"{server.url}/{PATTERN}") == KEYS
    assert sorted(os.listdir(home)) == ["notes.txt", "thesis.index", "thesis.tar"]


def test_a_transfer_ends_at_the_length_that_the_manifest_tells(packed: Path) -> None:
    with (packed / "train-000001.tar").open("ab") as file:
        file.write(bytes(100))
    with serve(packed) as server, pytest.raises(InputError, match=r"train-000001\.tar: sends more than [\d,]+ bytes"):
        keys_of(f"{server.url}/{PATTERN}")
    assert not [path for path in cached("*000001*") if path.suffix != ".lock"]


@pytest.mark.timeout(20)
def test_endless_transfers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(path: Path) -> None:
        raise AssertionError

    with pytest.raises(PermanentError, match="pipe:yes: sends more than 3,000,000 bytes"):
        download_module.download("pipe:yes", tmp_path / "x", check, most_bytes=3_000_000)
    monkeypatch.setattr(download_module, "DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(PermanentError, match=r"pipe:yes: the disk of .* is full; delete files, or choose another"):
        download_module.download("pipe:yes", tmp_path / "x", check)
    monkeypatch.undo()
    monkeypatch.setattr(pipes, "STALL_SECONDS", 0.2)
    with pytest.raises(NetworkError, match=r"only \d+ bytes came"):
        download_module.download("pipe:while printf x; do sleep 0.05; done", tmp_path / "x", check, attempts=1)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_download_left_is_removed(packed: Path) -> None:
    with serve(packed) as server:
        keys_of(f"{server.url}/{PATTERN}")
        tar = cached("train-000001.tar")[0]
        tar.unlink()
        tar.with_name(f"{tar.name}.{'a' * 16}.tmp").write_bytes(b"part")
        assert keys_of(f"{server.url}/{PATTERN}") == KEYS
    assert_cache_holds(packed)


def test_secrets_in_urls_are_not_repeated() -> None:
    with pytest.raises(NetworkError) as caught:
        resolve_shards("http://user:secret@127.0.0.1:1/x.tar?sig=secret", "train")
    assert "http://127.0.0.1:1/x.tar" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_local_shards_need_neither_torch_nor_webdataset(packed: Path) -> None:
    code = (
        "import sys; from relic.storage.spec import resolve_shards\n"
        f"resolve_shards({f'{packed}/{PATTERN}'!r}, 'train')\n"
        "sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_unknown_host_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NetworkError, match=r"^http://nohost\.invalid/x\.tar: could not be fetched: .* not known$"):
        keys_of("http://nohost.invalid/x.tar")
    assert "trying again" not in caplog.text


def test_user_and_password_reach_the_host_of_the_url_alone(packed: Path, tmp_path: Path) -> None:
    with serve(packed) as server, serve(packed) as other:
        server.redirects["x.tar"] = f"{other.url}/train-000000.tar".replace("127.0.0.1", "localhost")
        url = f"{server.url}/x.tar?sig=hidden".replace("://", "://user:p%40ss@")
        download_module.download(url, tmp_path / "x", lambda path: None)
        assert server.authorizations == ["Basic " + base64.b64encode(b"user:p@ss").decode()]
        assert other.authorizations == [None]
    assert (tmp_path / "x").read_bytes() == (packed / "train-000000.tar").read_bytes()


@pytest.mark.parametrize(
    ("versions", "sent"), [(("a", "a", "a"), 1.0), ((None, None, None), 2.0), (("a", "b", "b"), 1.5)]
)
def test_a_cut_body_goes_on_at_the_byte_unless_the_file_changes(
    tmp_path: Path, versions: tuple[str | None, ...], sent: float
) -> None:
    data = random.Random(1).randbytes(4 << 20)
    (tmp_path / "x.tar").write_bytes(data)
    with serve(tmp_path) as server:
        server.cuts["x.tar"] = 2
        answers = iter(versions)

        def versioned(handler: BaseHTTPRequestHandler) -> None:
            version = next(answers, versions[-1])
            server.versions = {} if version is None else {"x.tar": f'"{version}"'}
            ShardServer.answer(server, handler)

        server.answer = versioned  # type: ignore[method-assign]
        download_module.download(f"{server.url}/x.tar", tmp_path / "got", lambda path: None)
        assert (tmp_path / "got").read_bytes() == data
        lost = server.sent - int(sent * len(data))  # what came since the last whole chunk
        assert 0 <= lost <= 2 << 18


@pytest.mark.parametrize(("code", "requests"), [(503, 3), (429, 3), (403, 1)])
def test_a_busy_server_is_asked_again(packed: Path, monkeypatch: pytest.MonkeyPatch, code: int, requests: int) -> None:
    monkeypatch.setattr(download_module, "BUSY_SECONDS", 0.05)
    with serve(packed) as server:
        server.errors["x.tar"] = code
        with pytest.raises((NetworkError, PermanentError), match=rf"x\.tar: .*HTTP {code}"):
            keys_of(f"{server.url}/x.tar")
        assert server.requests["x.tar"] == requests


def test_a_redirect_to_a_local_file_is_not_followed(packed: Path, tmp_path: Path) -> None:
    with serve(packed) as server:
        server.redirects["x.tar"] = f"file://{packed}/train-000000.tar"
        server.redirects["loop.tar"] = f"{server.url}/loop.tar"
        with pytest.raises(PermanentError, match=r"x\.tar: it leads to another protocol"):
            keys_of(f"{server.url}/x.tar")
        with pytest.raises(PermanentError, match=r"loop\.tar: the server redirects without end"):
            keys_of(f"{server.url}/loop.tar")
    assert not cached("*.tar")


def test_no_command_outlives_its_transfer(tmp_path: Path) -> None:
    """A killed shell would leave what it started."""
    with pytest.raises(PermanentError, match="sends more than"):
        download_module.download(
            f"pipe:sh -c 'echo $$ > {tmp_path}/pid; sleep 30' & until [ -s {tmp_path}/pid ]; do :; done; "
            "head -c 5000 /dev/zero; sleep 30",
            tmp_path / "x",
            lambda path: None,
            most_bytes=1000,
        )
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.02)
    raise AssertionError("it still runs")


def test_a_stop_ends_a_transfer(packed: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    with serve(packed) as server:
        server.stalls.add("train-000001.tar")

        def stop_later() -> None:
            server.stalled.wait(30)
            stop.set()

        threading.Thread(target=stop_later).start()
        with pytest.raises(NetworkError, match=r"train-000001\.tar: could not be fetched: .*interrupted"):
            download_module.download(f"{server.url}/train-000001.tar", tmp_path / "x.tar", lambda path: None, stop=stop)
    assert not list(tmp_path.glob("x.tar*"))
