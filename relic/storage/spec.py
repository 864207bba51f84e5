"""What the text of `--shards` names, and its shards opened: a folder, local tars, or URLs.

Imports no torch.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from braceexpand import braceexpand

from relic.errors import InputError
from relic.shards.manifest import MOST_MANIFEST_BYTES, manifest_of
from relic.shards.shard_set import ShardSet, open_shard_set, open_tars
from relic.shards.splits import select_split
from relic.storage.cache import fetch_shards
from relic.storage.faults import MissingError, PermanentError
from relic.storage.objects import is_object, is_store, list_files, read_small
from relic.storage.resident import CacheRoom, open_bounded
from relic.storage.urls import beside, file_name, is_url, url_path, without_secrets


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
_TAR = re.compile(r"\.(tar(\.\w+)?|t\w?z)$", re.IGNORECASE)
"""The ending of a tar, or of a compressed one."""


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
    """The paths or URLs of one split, as their names tell it (`select_split`).

    The URL of a folder stands for the tars of its manifest; where there is none, for those that its store lists. Raises
    InputError and NetworkError.
    """
    tars = list(spec.tars)
    if len(tars) == 1 and _is_remote_folder(tars[0]):
        tars = _tars_in(tars[0], split)
    paths = [url_path(tar) if spec.is_remote else tar for tar in tars]
    chosen = set(select_split(paths, split))
    return [tar for tar, path in zip(tars, paths, strict=True) if path in chosen]


def _is_remote_folder(url: str) -> bool:
    """Whether a URL names no file: it ends with a slash, or is in an object store and has no ending of a tar."""
    return is_object(url) and (not file_name(url) or (is_store(url) and not _TAR.search(file_name(url))))


def _tars_in(url: str, split: str) -> list[str]:
    folder = url if url_path(url).endswith("/") else f"{url}/"
    manifest = beside(folder, f"{split}.json")
    way_out = f"name the tars, such as {without_secrets(beside(folder, split))}-{{000000..000117}}.tar"
    try:
        value = json.loads(read_small(manifest, MOST_MANIFEST_BYTES)[0])
        names = [info.name for info in manifest_of(value, split).shards]
    except MissingError:
        listed = list_files(folder) if is_store(folder) else ()
        names = [found.name for found in listed if _TAR.search(found.name) and "/" not in found.name]
    except PermanentError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{without_secrets(manifest)}: not a manifest that relic wrote; {way_out}") from None
    if not names:
        raise InputError(f"{without_secrets(folder)}: holds no {split}.json, and lists no tars; {way_out}")
    return [beside(folder, name) for name in names]


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
