"""The text of `--shards`: what it names, and the folders of servers among that."""

from contextlib import suppress
from pathlib import Path

import pytest
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.errors import InputError
from relic.storage.resident import CacheRoom
from relic.storage.spec import _expansions, parse_spec, resolve_shards, tars_of_split
from relic.storage.urls import beside, file_name, is_url, without_secrets
from tests.conftest import write_shards
from tests.storage.http_shards import serve
from tests.storage.s3_server import S3Server


def test_a_folder_local_tars_and_urls_are_told_apart(tmp_path: Path) -> None:
    assert parse_spec(str(tmp_path)).folder == tmp_path
    assert parse_spec("not/there").folder == Path("not/there")
    local = parse_spec("file://a%20b/x-{0..1}.tar")
    assert (local.folder, local.tars, local.is_remote) == (None, ("a b/x-0.tar", "a b/x-1.tar"), False)
    remote = parse_spec("https://user:word@host/{train,val}-0.tar?key=word")
    assert remote.tars == tuple(f"https://user:word@host/{split}-0.tar?key=word" for split in ("train", "val"))
    assert remote.shown == "https://host/{train,val}-0.tar"
    assert tars_of_split(remote, "val") == ["https://user:word@host/val-0.tar?key=word"]
    assert parse_spec("pipe:cat x.tar").is_remote


@pytest.mark.parametrize("remote", ["", "http://host/"])
def test_other_names_serve_either_split(remote: str) -> None:
    spec = parse_spec(f"{remote}x-{{0..1}}.tar")
    assert tars_of_split(spec, "train") == tars_of_split(spec, "val") == [f"{remote}x-0.tar", f"{remote}x-1.tar"]


def test_braces_that_do_not_match_name_the_flag_and_no_secret() -> None:
    with pytest.raises(InputError, match=r"--val_shards http://host/\{0\.\.1") as caught:
        parse_spec("http://user:word@host/{0..1", flag="--val_shards")
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:S3CRET@host:80/a/x.tar?sig=S3CRET#S3CRET", "http://host:80/a/x.tar"),
        ("http://u:a@S3CRET@host/x.tar", "http://host/x.tar"),
        ("http://u:a/S3CRET@host/x.tar", "http://***@host/x.tar"),
        ("http://S3CRET/a@host/x.tar", "http://***@host/x.tar"),
        ("http://u:a#S3CRET@host/x.tar", "http://***"),
        ("http://u:a?S3CRET@host/x.tar", "http://***"),
        ("http://host/x.tar?mail=a@S3CRET", "http://host/x.tar"),
        ("http://[::1]:80/x.tar#S3CRET", "http://[::1]:80/x.tar"),
        ("{http://u:S3CRET@h/a.tar,http://u:S3CRET@h/b.tar}", "{http://h/a.tar,http://h/b.tar}"),
        ("pipe:curl -H 'Authorization: Bearer S3CRET' http://u:S3CRET@h/x.tar?S3CRET | cat", None),
        ("pipe:TOKEN=S3CRET fetch a/x.tar", "pipe:... a/x.tar"),
        ("pipe:fetch --password S3CRET a/{0..3}.tar", "pipe:fetch ... a/{0..3}.tar"),
        ("/a/b@c?d#e.tar", "/a/b@c?d#e.tar"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str | None) -> None:
    found = without_secrets(text)
    assert "S3CRET" not in found
    assert shown is None or found == shown
    assert without_secrets(found) == found


@pytest.mark.parametrize(
    "text", ["{0..999999999}", "{0..999}{0..999}{0..9}", "{{a,b}{0..9999}{0..9999},c}", "{x,y}" * 30]
)
@pytest.mark.timeout(5)
def test_patterns_are_counted_before_they_are_expanded(text: str) -> None:
    with pytest.raises(InputError, match=r"--shards .*names more than 1,000,000 tars"):
        parse_spec(f"/a/{text}.tar")


@settings(max_examples=50)
@given(st.text("{},.0123a\\", max_size=14))
def test_the_count_is_that_of_braceexpand(text: str) -> None:
    with suppress(ValueError):
        assert _expansions(text) >= len(list(braceexpand(text)))


def test_a_range_is_counted_exactly() -> None:
    for text in ("{000000..000117}", "{9..1..2}", "{train-{0..11},val-{0..4}}", "x", "{a}", "{0..3}{a,b}"):
        assert _expansions(text) == len(list(braceexpand(text)))


def test_urls_in_braces_and_what_is_no_url() -> None:
    assert parse_spec("http{s,}://host/x.tar").tars == ("https://host/x.tar", "http://host/x.tar")
    with pytest.raises(InputError, match="not a URL"):
        parse_spec("http://[host/x.tar")
    with pytest.raises(InputError, match="both URLs and paths"):
        parse_spec("{http://host/x.tar,y.tar}")


def test_the_parts_of_a_url() -> None:
    url = "s3://bucket/set/train-000000.tar?sig=x"
    assert file_name(url) == "train-000000.tar"
    assert file_name("pipe:cat a/b.tar") == ""
    assert beside(url, "train.json") == "s3://bucket/set/train.json?sig=x"
    assert without_secrets(url) == "s3://bucket/set/train-000000.tar"
    assert not is_url("C/x.tar")
    assert is_url("pipe:cat x")


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_of_a_store_stands_for_the_tars_of_its_manifest(tmp_path: Path, s3: S3Server, end: str) -> None:
    write_shards(tmp_path / "set", counts=(3, 2), side=16)
    s3.put_folder("bucket/a set", {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()})
    s3.objects["bucket/a set/train-000002.tar"] = b"of an earlier set"
    opened = resolve_shards(f"s3://bucket/a set{end}", "train")
    assert opened.fingerprint == resolve_shards(str(tmp_path / "set"), "train").fingerprint
    bounded = resolve_shards(f"s3://bucket/a set{end}", "train", room=CacheRoom(1))
    assert bounded.fingerprint == opened.fingerprint
    with pytest.raises(InputError, match=r"^--shards s3://bucket/a set.*: names no val shard; "):
        resolve_shards(f"s3://bucket/a set{end}", "val")
    for manifest in (b"<html>", b'{"format_version": 1}', b'{"packing": 1}'):
        s3.objects["bucket/a set/train.json"] = manifest
        with pytest.raises(InputError, match=r"^s3://bucket/a set/train\.json: not a manifest.*; name the tars, such"):
            resolve_shards(f"s3://bucket/a set{end}", "train")


def test_a_folder_without_a_manifest_stands_for_the_tars_that_the_store_lists(tmp_path: Path, s3: S3Server) -> None:
    write_shards(tmp_path / "set", counts=(3, 2), side=16)
    tars = {f"train-{name}.tar": (tmp_path / f"set/train-00000{name}.tar").read_bytes() for name in (0, 1)}
    s3.put_folder("bucket/v1.5", {**tars, "train.txt": b"", "below/train-2.tar": b""})
    assert resolve_shards("s3://bucket/v1.5", "train").samples == (3, 2)
    with pytest.raises(InputError, match=r"^s3://bucket/v1/: holds no train\.json, and lists no tars; name the tars"):
        resolve_shards("s3://bucket/v1", "train")


def test_a_folder_of_a_web_server_ends_with_a_slash(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", counts=(3, 2), side=16)
    with serve(tmp_path / "set") as server:
        user = server.url.replace("://", "://me:S3CRET@")
        assert resolve_shards(f"{user}/?key=S3CRET", "train").samples == (3, 2)
        server.errors["train.json"] = 404
        with pytest.raises(InputError, match=rf"^{server.url}/: holds no train\.json, and lists no tars; ") as caught:
            resolve_shards(f"{user}/?key=S3CRET", "train")
        assert "S3CRET" not in str(caught.value)
        server.requests.clear()
        with pytest.raises(InputError, match=rf"^{server.url}: "):
            resolve_shards(server.url, "train")
        assert server.requests["set"] > 0  # it may be a tar
