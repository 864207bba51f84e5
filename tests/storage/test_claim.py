"""Two that write to one folder of an object store: the second is refused while the first lives."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from relic.errors import InputError, RefusedError
from relic.storage import claim
from relic.storage.claim import Claim
from relic.storage.objects import put_bytes, read_small
from tests.storage.s3_server import S3Server

URL = "s3://bucket/run"
FILE = f"bucket/run/{claim.NAME}"
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(60)


def test_the_second_is_refused_by_the_name_of_the_first(s3: S3Server) -> None:
    with Claim(URL, "--save_url"):
        file = json.loads(s3.objects[FILE])
        with pytest.raises(
            RefusedError, match=rf"^--save_url {URL}: process {file['pid']} of {file['host']} writes there"
        ):
            Claim(URL, "--save_url")
        with Claim(f"{URL}-2", "--save_url"):
            pass
    assert not s3.objects
    with Claim(URL, "--save_url"):
        assert FILE in s3.objects


def test_a_bucket_that_is_not_there_is_told_with_the_flag(s3: S3Server) -> None:
    with pytest.raises(InputError, match=r"^--save_url s3://other/run/\.writer\.json: there is no such bucket"):
        Claim("s3://other/run", "--save_url")


def test_one_that_was_killed_on_this_machine_is_followed_at_once(s3: S3Server) -> None:
    code = f"import os, signal; from relic.storage.claim import Claim; Claim({URL!r}, 'x'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    killed = json.loads(s3.objects[FILE])
    with Claim(URL, "--save_url"):
        assert json.loads(s3.objects[FILE])["pid"] != killed["pid"]


@pytest.mark.parametrize("lives", [True, False])
def test_one_of_another_machine_is_watched(s3: S3Server, lives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_DEAD_SECONDS", 0.5)
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(claim, "_BEAT_SECONDS", 0.05)
    other: dict[str, Any] = {"host": "far", "pid": 7, "began": "1", "machine": "another", "token": "t", "beats": 0}
    s3.objects[FILE] = json.dumps(other).encode()
    ended = threading.Event()

    def beat() -> None:
        while lives and not ended.wait(0.02):
            other["beats"] += 1
            s3.objects[FILE] = json.dumps(other).encode()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        if lives:
            with pytest.raises(RefusedError, match="process 7 of far writes there"):
                Claim(URL, "--save_url")
        else:
            with Claim(URL, "--save_url"):
                assert json.loads(s3.objects[FILE])["host"] != "far"
    finally:
        ended.set()
        thread.join()


def test_one_that_was_believed_dead_writes_no_more(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT_SECONDS", 0.02)
    with Claim(URL, "--save_url") as first:
        first.check()
        with s3.lock:
            taken = {**json.loads(s3.objects[FILE]), "host": "far", "pid": 7, "token": "t"}
            s3.objects[FILE] = json.dumps(taken).encode()
        first._thread.join(30)
        with pytest.raises(InputError, match="process 7 of far writes there now; this run writes there no more"):
            first.check()
    assert json.loads(s3.objects[FILE])["host"] == "far"


def test_it_is_written_anew_while_the_process_lives(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT_SECONDS", 0.02)
    with Claim(URL, "--save_url") as held:
        for _ in range(500):
            if json.loads(s3.objects[FILE])["beats"] > 3:
                break
            threading.Event().wait(0.02)
        assert json.loads(s3.objects[FILE])["beats"] > 3
        held.check()


def test_a_store_without_conditions_is_said(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    s3.unconditional = True
    with Claim(URL, "--save_url") as held:
        held.check()
    assert f"--save_url {URL}: this store cannot tell whether another run writes there" in caplog.text


def test_a_file_is_replaced_only_in_its_version(s3: S3Server) -> None:
    first = put_bytes(b"1", f"{URL}/x", instead_of=None)
    assert first is not None
    assert put_bytes(b"2", f"{URL}/x", instead_of=None) is None
    assert put_bytes(b"2", f"{URL}/x", instead_of=first) is not None
    assert put_bytes(b"3", f"{URL}/x", instead_of=first) is None
    assert read_small(f"{URL}/x", 9)[0] == b"2"
