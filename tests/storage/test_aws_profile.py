"""The files of the `aws` command: which profile is read, and what comes before it."""

import os
from pathlib import Path

import pytest

from relic.errors import InputError
from relic.storage.aws_profile import profile_settings

CREDENTIALS = """[default]
aws_access_key_id = ONE
aws_secret_access_key = S3CRET1
[other]
aws_access_key_id=TWO
aws_secret_access_key=S3CRET2
aws_session_token=TOKEN%x
"""
CONFIG = """[default]
region = eu-north-1
[profile other]
region = us-west-2
endpoint_url = http://127.0.0.1:9
[profile login]
sso_session = mine
region = us-west-1
[profile inline]
aws_access_key_id = THREE
aws_secret_access_key = S3CRET3
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws" / "config").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_default_profile_and_a_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile_settings() == {
        "access_key_id": "ONE", "secret_access_key": "S3CRET1", "region": "eu-north-1",
    }  # fmt: skip
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert profile_settings() == {
        "access_key_id": "TWO", "secret_access_key": "S3CRET2", "session_token": "TOKEN%x", "region": "us-west-2",
        "endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    monkeypatch.setenv("AWS_PROFILE", "inline")
    assert profile_settings() == {"access_key_id": "THREE", "secret_access_key": "S3CRET3"}


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert profile_settings() == {}
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8")
    assert profile_settings() == {}


def test_other_files_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("[default]\naws_access_key_id=FOUR\naws_secret_access_key=S3CRET4\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "mine"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert profile_settings() == {"access_key_id": "FOUR", "secret_access_key": "S3CRET4"}
    (tmp_path / "mine").unlink()
    assert profile_settings() == {}


def test_a_profile_without_keys_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, what in (("login", "holds no keys"), ("typo", "is not in the files")):
        monkeypatch.setenv("AWS_PROFILE", name)
        with pytest.raises(InputError, match=rf"^AWS_PROFILE {name}: {what}.*aws configure export-credentials"):
            profile_settings()
    (tmp_path / ".aws" / "credentials").write_text("aws_secret_access_key = S3CRET\n")
    with pytest.raises(InputError, match=r"credentials: cannot be read as a file of the aws command") as caught:
        profile_settings()
    assert "S3CRET" not in str(caught.value)
