"""What the text of `--shards` names, and its shards opened: a folder, local tars, or URLs.

Imports no torch.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from braceexpand import braceexpand

from relic.errors import InputError
from relic.shards.shard_set import ShardSet, open_shard_set, open_tars
from relic.shards.splits import select_split
from relic.storage.cache import fetch_shards
from relic.storage.resident import CacheRoom, open_bounded
from relic.storage.urls import is_url, url_path, without_secrets


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


_MOST_TARS = 1_000_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LONGEST_NUMBER = 18


def parse_spec(text: str, *, flag: str = "--shards") -> ShardSpec:
    """Read the text of a flag. Opens no file. Raises InputError naming `flag` for braces that do not match."""
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    shown = without_secrets(text)
    if not is_url(text) and (Path(text).is_dir() or not ("{" in text or text.endswith(".tar"))):
        return ShardSpec(Path(text), (), is_remote=False, shown=shown)
    tars = _expanded(text, f"{flag} {shown}")
    remote = [is_url(tar) for tar in tars]
    if any(remote) and not all(remote):
        raise InputError(f"{flag} {shown}: names both URLs and paths; give one of the two")
    try:
        for tar in tars if any(remote) else ():
            url_path(tar)
    except ValueError as error:
        raise InputError(f"{flag} {shown}: not a URL; a host in brackets is an IPv6 address") from error
    return ShardSpec(None, tars, any(remote), shown)


def _expanded(text: str, shown: str) -> tuple[str, ...]:
    try:
        count = _expansions(text)
        if count > _MOST_TARS:
            raise InputError(f"{shown}: names more than {_MOST_TARS:,} tars")
        return tuple(braceexpand(text))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown}: unbalanced braces") from error


def _expansions(text: str) -> int:
    """The number of texts that `braceexpand` makes of `text`: it holds all numbers of a range in memory.

    Raises ValueError for braces that do not match.
    """
    # Of each open brace: where it began, the texts of its finished alternatives, and of the one that is being read.
    starts, finished, present = [0], [0], [1]
    place = 0
    while place < len(text):
        letter = text[place]
        if letter == "{":
            starts.append(place + 1)
            finished.append(0)
            present.append(1)
        elif letter == "," and len(starts) > 1:
            finished[-1] += present[-1]
            present[-1] = 1
        elif letter == "}":
            found = _RANGE.fullmatch(text[starts.pop() : place])
            count = finished.pop() + present.pop()
            if not starts:
                raise ValueError("unbalanced braces")
            if found:
                if len(found[0]) > 3 * _LONGEST_NUMBER:
                    raise ValueError("a range of long numbers")
                first, last, step = (int(part or 1) for part in found.groups())
                count = abs(last - first) // (abs(step) or 1) + 1
            elif re.fullmatch(r"[A-Za-z]\.\.[A-Za-z](\.\..*)?", text[:place].rpartition("{")[2]):
                count = 52
            present[-1] *= count
        place += 2 if letter == "\\" else 1
    if len(starts) > 1:
        raise ValueError("unbalanced braces")
    return present[0]


def tars_of_split(spec: ShardSpec, split: str) -> list[str]:
    """The paths or URLs of one split, as their names tell it (`select_split`)."""
    paths = [url_path(tar) if spec.is_remote else tar for tar in spec.tars]
    chosen = set(select_split(paths, split))
    return [tar for tar, path in zip(spec.tars, paths, strict=True) if path in chosen]


def resolve_shards(
    text: str,
    split: str,
    *,
    flag: str = "--shards",
    room: CacheRoom | None = None,
    cache_dir: Path | None = None,
) -> ShardSet:
    """Open a split of what the text of a flag names. URLs that are not in the cache are fetched first.

    `cache_dir`: the folder of the cache without `room`; None for the usual one.

    With `room`, a part of the shards at URLs is fetched while the work goes on, and the rest is read from the server.
    Raises InputError naming `flag`, path or URL, and NetworkError when a host cannot be reached.
    """
    spec = parse_spec(text, flag=flag)
    if spec.folder is not None:
        return open_shard_set(spec.folder, split, flag=flag)
    named = tars_of_split(spec, split)
    if not named:
        raise InputError(f"{flag} {spec.shown}: names no {split} shard; {split} shards are called {split}-*.tar")
    if len(set(named)) != len(named):
        raise InputError(f"{flag} {spec.shown}: names a tar twice; each sample is read once")
    if spec.is_remote and room is not None:
        return open_bounded(named, split, room, flag=flag)
    tars = fetch_shards(named, split, cache_dir) if spec.is_remote else [Path(tar) for tar in named]
    return open_tars(tars, split, Path(spec.shown), flag=flag)
