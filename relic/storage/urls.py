"""The parts of a shard's URL: pure functions of its text."""

import re
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Whether `text` is a URL or a `pipe:` command, and not a path."""
    return _URL.match(text) is not None


def is_http(url: str) -> bool:
    """Whether a web server answers for `url`."""
    return url.startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """The last part of the URL's path; empty for a `pipe:` command."""
    return "" if url.startswith("pipe:") else urlsplit(url).path.rpartition("/")[2]


def beside(url: str, name: str) -> str:
    """The URL of the file `name` in the folder of `url`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))


def without_secrets(url: str) -> str:
    """The URL as messages show it: without password and signature."""
    if url.startswith("pipe:"):
        return url
    return re.sub(r"//[^/@]*@", "//", url.split("?")[0])
