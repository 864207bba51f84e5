"""The text of `--shards`, read without opening a file."""

from pathlib import Path

import pytest

from relic.errors import InputError
from relic.storage.spec import parse_spec, tars_of_split
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


def test_the_parts_of_a_url() -> None:
    url = "s3://bucket/set/train-000000.tar?sig=x"
    assert file_name(url) == "train-000000.tar"
    assert file_name("pipe:cat a/b.tar") == ""
    assert beside(url, "train.json") == "s3://bucket/set/train.json?sig=x"
    assert without_secrets(url) == "s3://bucket/set/train-000000.tar"
    assert not is_url("C/x.tar")
    assert is_url("pipe:cat x")
