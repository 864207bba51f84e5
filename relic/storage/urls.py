"""The parts of a shard's URL: pure functions of its text."""

import re
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
_HIDDEN = "***"


def is_url(text: str) -> bool:
    """Whether `text` is a URL or a `pipe:` command, and not a path."""
    return _URL.match(text) is not None


def is_pipe(url: str) -> bool:
    """Whether `url` is a `pipe:` command."""
    return url.startswith("pipe:")


def is_http(url: str) -> bool:
    """Whether a web server answers for `url`."""
    return scheme_of(url) in ("http", "https")


def scheme_of(url: str) -> str:
    """What stands before the colon, in small letters."""
    return url.partition(":")[0].lower()


def url_path(url: str) -> str:
    """The path of the URL, without host, query and fragment; a `pipe:` command is returned whole."""
    return url if is_pipe(url) else urlsplit(url).path


def file_name(url: str) -> str:
    """The last part of the URL's path; empty for a `pipe:` command."""
    return "" if is_pipe(url) else url_path(url).rpartition("/")[2]


def beside(url: str, name: str) -> str:
    """The URL of the file `name` in the folder of `url`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))


def in_folder(url: str, name: str) -> str:
    """The URL of the file `name` in the folder `url`."""
    return f"{url.rstrip('/')}/{name}"


def without_secrets(text: str) -> str:
    """The text of `--shards` as messages and records may hold it; a path is returned unchanged.

    Of a URL the user, the password, the query and the fragment are left out. A password may hold any character, so
    where the end of it cannot be told from a path, more is left out than needed. Of a `pipe:` command the program and
    the tars are left: any other word could be a secret.
    """
    if is_pipe(text):
        return _command_without_secrets(text)
    if not is_url(text):
        # a brace before the scheme: {http://a/x.tar,http://b/x.tar}
        return re.sub(r"://[^,\s]*", lambda found: without_secrets("x" + found[0])[1:], text)
    scheme, _, rest = text.partition("://")
    if rest.startswith(f"{_HIDDEN}@"):  # shown already
        return text
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return f"{scheme}://{_before_query(rest.rpartition('@')[2] if _ends_late(rest) else rest.partition('@')[2])}"
    shown = _before_query(rest)
    if "@" in shown:
        return f"{scheme}://{_HIDDEN}@{shown.rpartition('@')[2]}"
    if re.search(r":(?!\d*$)", host) and not host.startswith("["):
        return f"{scheme}://{_HIDDEN}"
    return f"{scheme}://{shown}"


def _ends_late(rest: str) -> bool:
    """Whether another `@` stands before the query: it may end the password, or be a part of the path."""
    return "@" in _before_query(rest).partition("@")[2]


def _before_query(rest: str) -> str:
    return re.split(r"[?#]", rest, maxsplit=1)[0]


def _command_without_secrets(text: str) -> str:
    shown: list[str] = []
    for place, word in enumerate(text.removeprefix("pipe:").split()):
        is_program = place == 0 and re.fullmatch(r"[\w./+-]+", word)
        is_tar = ".tar" in word and not re.search(r"[=:?#@]", word)
        part = word if is_program or is_tar else without_secrets(word) if _is_plain_url(word) else "..."
        if part != "..." or shown[-1:] != ["..."]:
            shown.append(part)
    return "pipe:" + " ".join(shown)


def _is_plain_url(word: str) -> bool:
    return is_url(word) and not is_pipe(word)
