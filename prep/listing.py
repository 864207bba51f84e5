"""The key of each listed file, and the hash of a listing."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence

from relic.pictures.listing import Source

MAX_KEY_LENGTH = 80
_OUTSIDE_KEY = re.compile(r"[^A-Za-z0-9_-]")


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def listing_sha256(sources: Sequence[Source]) -> str:
    """sha256 of the path and size of each source, in order."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(os.fsencode(source.path) + b"\0%d\n" % source.size)
    return digest.hexdigest()


def unique_keys(sources: Sequence[Source], *, reserved_length: int = 0) -> list[str]:
    """One key per source: its file name without ending, in the characters `[A-Za-z0-9_-]`.

    Other characters become `_`. A key that would begin with `__` gets a `k` before it: readers of WebDatasets take such
    names for notes about the set. A key is cut to 80 - `reserved_length` characters. If several sources have the same
    name, the first keeps it and the others get `-1`, `-2`, ... All keys differ, and they depend on the listing alone.
    """
    room = MAX_KEY_LENGTH - reserved_length
    stems = [_plain(_stem(source.path))[:room] for source in sources]
    taken = set(stems)
    if len(taken) == len(stems):
        return stems
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    seen: Counter[str] = Counter()
    keys = []
    for stem in stems:
        key = stem
        if stem in shared:
            if seen[stem]:
                key = _next_free(stem, seen, taken, room)
            seen[stem] += 1
        keys.append(key)
    return keys


def _plain(stem: str) -> str:
    key = _OUTSIDE_KEY.sub("_", stem)
    return f"k{key}" if key.startswith("__") else key


def _next_free(stem: str, seen: "Counter[str]", taken: set[str], room: int) -> str:
    while True:
        suffix = f"-{seen[stem]}"
        key = stem[: room - len(suffix)] + suffix
        if key not in taken:
            taken.add(key)
            return key
        seen[stem] += 1


def crop_key(key: str, crop_number: int, crops_per_image: int) -> str:
    """A sample's key: the source's key, or `KEY_NUMBER` if there are several crops per image."""
    return key if crops_per_image == 1 else f"{key}_{crop_number}"


def crop_key_length(crops_per_image: int) -> int:
    """The largest number of characters that `crop_key` adds."""
    return 0 if crops_per_image == 1 else 1 + len(str(crops_per_image - 1))
