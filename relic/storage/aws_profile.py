"""The keys of a profile in the files of the `aws` command, which obstore does not read."""

import configparser
import os
from pathlib import Path

from relic.errors import InputError

_OTHER_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables that come before a profile, as for the `aws` command. obstore reads them."""
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_EXPORT = 'eval "$(aws configure export-credentials --format env)"'


def profile_settings() -> dict[str, str]:
    """obstore's settings from the profile `AWS_PROFILE`, or else from `default`. The environment comes first.

    Raises InputError for an `AWS_PROFILE` that is not there or holds no keys: those of a login (SSO) or of a program.
    """
    named = os.environ.get("AWS_PROFILE", "")
    profile = named or "default"
    config_section = "default" if profile == "default" else f"profile {profile}"
    keys = _section("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile)
    config = _section("AWS_CONFIG_FILE", "config", config_section)
    settings = {}
    if not any(os.environ.get(name) for name in _OTHER_SOURCES):
        found = {**config, **keys}
        settings = {ours: found[theirs] for theirs, ours in _KEYS.items() if theirs in found}
        if named and not {"access_key_id", "secret_access_key"} <= settings.keys():
            what = "holds no keys" if found else "is not in the files of the aws command"
            raise InputError(f"AWS_PROFILE {named}: {what}; set the keys of a login by: {_EXPORT}")
    if "region" in config and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        settings["region"] = config["region"]
    if "endpoint_url" in config and not (
        os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT")
    ):
        settings["endpoint"] = config["endpoint_url"]
    return settings


def _section(variable: str, name: str, section: str) -> dict[str, str]:
    path = Path(os.environ.get(variable) or Path("~/.aws", name)).expanduser()
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        # The error may quote a line of the file, and so a key.
        raise InputError(f"{path}: cannot be read as a file of the aws command ({type(error).__name__})") from None
    return dict(parser[section]) if parser.has_section(section) else {}
