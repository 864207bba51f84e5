"""Which tars of a set without a manifest belong to a split: their names say it."""

import logging
import re
from collections.abc import Sequence
from pathlib import PurePath

from relic.errors import InputError

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_WORD = re.compile(rf"(?:^|[^a-z0-9])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?=[^a-z]|$)")

log = logging.getLogger(__name__)


def select_split(tars: Sequence[str], split: str) -> list[str]:
    """The tars of `tars` (paths, the paths of URLs, or commands) that belong to `split`, in order.

    - If names begin with `train-` or `val-`, those of the split. Other names belong to neither, and the log says so.
    - If names hold a word such as `train`, `val` or `validation` (`imagenet-train-000000.tar`), those of the split. If
      no name does, but the folders' names tell different splits, these count.
    - Otherwise all: they serve either split, and the log says so.

    Raises InputError for a name that tells no split, or two, beside names that tell one.
    """
    names = ["" if _is_command(tar) else PurePath(tar).name for tar in tars]
    if any(name.startswith(("train-", "val-")) for name in names):
        others = [name for name in names if not name.startswith(("train-", "val-"))]
        if others:
            log.warning("%s: not read, since it is called neither train-* nor val-*", _shown(others))
        return [tar for tar, name in zip(tars, names, strict=True) if name.startswith(f"{split}-")]
    told = [_splits_in(name) for name in names]
    if not _tells(told):
        told = [_splits_in(tar if _is_command(tar) else PurePath(tar).parent.name) for tar in tars]
        if not set().union(*told) >= {"train", "val"} or not _tells(told):
            if tars:
                what = "%s: the names tell no split (train, val), so all %d tars are read as %s, and as any other split"
                log.warning(what, _shown(names), len(tars), split)
            return list(tars)
    for tar, splits in zip(tars, told, strict=True):
        if len(splits) != 1:
            how = "two splits" if splits else "no split, and the names of other tars do"
            shown = "a command" if _is_command(tar) else tar
            raise InputError(f"{shown}: its name tells {how}; rename it (train-*, val-*), or leave it out")
    return [tar for tar, splits in zip(tars, told, strict=True) if splits == {split}]


def _is_command(tar: str) -> bool:
    return tar.startswith("pipe:")


def _splits_in(name: str) -> set[str]:
    """The splits whose words stand in a name, apart from other letters."""
    return {_WORDS[word] for word in _WORD.findall(name.lower())}


def _tells(told: Sequence[set[str]]) -> bool:
    """Whether a name tells the split train or val. Test tars alone, and `trainval` tars alone, may serve either."""
    return any(splits & {"train", "val"} for splits in told) and any(splits != {"train", "val"} for splits in told)


def _shown(names: Sequence[str]) -> str:
    first = repr(names[0])[1:-1] or "a command"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
