"""The text of `--shards`, read without opening a file."""

from contextlib import suppress
from pathlib import Path

import pytest
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.errors import InputError
from relic.storage.spec import _expansions, parse_spec, tars_of_split
from relic.storage.urls import beside, file_name, is_url, without_secrets


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
