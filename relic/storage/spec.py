"""What the text of `--shards` names, and its shards opened: a folder, local tars, or URLs.

Imports neither torch nor webdataset unless a shard must be fetched.
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from braceexpand import braceexpand

from relic.errors import InputError
from relic.shards.shard_set import ShardSet, open_shard_set, open_tars, select_split
from relic.storage.cache import fetch_shards
from relic.storage.urls import file_name, is_url, without_secrets


class ShardSpec(NamedTuple):
    """The shards that a text names: one folder, or tars in order."""

    folder: Path | None
    """A folder of shards; None where the text names tars."""
    tars: tuple[str, ...]
    """Paths or URLs of tars, with braces expanded; empty where the text names a folder."""
    is_remote: bool
    """Whether `tars` are URLs."""
    shown: str
    """The text as messages show it."""


def parse_spec(text: str, *, flag: str = "--shards") -> ShardSpec:
    """Read the text of a flag. Opens no file. Raises InputError naming `flag` for braces that do not match."""
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    is_remote, shown = is_url(text), without_secrets(text)
    if not is_remote and (Path(text).is_dir() or not ("{" in text or text.endswith(".tar"))):
        return ShardSpec(Path(text), (), is_remote=False, shown=shown)
    try:
        return ShardSpec(None, tuple(braceexpand(text)), is_remote, shown)
    except ValueError as error:
        raise InputError(f"{flag} {shown}: unbalanced braces") from error


def tars_of_split(spec: ShardSpec, split: str) -> list[str]:
    """The paths or URLs of one split.

    If any name begins with `train-` or `val-`, only those of the split are taken. Otherwise all serve either split.
    """
    paths = [Path(file_name(tar) if spec.is_remote else tar) for tar in spec.tars]
    chosen = set(select_split(paths, split))
    return [tar for tar, path in zip(spec.tars, paths, strict=True) if path in chosen]


def resolve_shards(text: str, split: str, *, flag: str = "--shards") -> ShardSet:
    """Open a split of what the text of a flag names. URLs that are not in the cache are fetched first.

    Raises InputError naming `flag`, path or URL, and DownloadError when a host cannot be reached.
    """
    spec = parse_spec(text, flag=flag)
    if spec.folder is not None:
        return open_shard_set(spec.folder, split, flag=flag)
    named = tars_of_split(spec, split)
    if not named:
        raise InputError(f"{flag} {spec.shown}: names no {split} shard; {split} shards are called {split}-*.tar")
    tars = fetch_shards(named, split) if spec.is_remote else [Path(tar) for tar in named]
    return open_tars(tars, split, Path(spec.shown), flag=flag)
