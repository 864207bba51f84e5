"""`--part I/N`: the share of the shards that one of several processes packs."""

import re
from typing import NamedTuple

from relic.errors import InputError

_MOST_PARTS = 1_000_000


class PackingShare(NamedTuple):
    """The shards whose number leaves the remainder `number` when divided by `of`. 0/1 is all of them."""

    number: int = 0
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        """Whether the shard belongs to this part."""
        return shard % self.of == self.number

    def goes_with(self, other: "PackingShare") -> bool:
        """Whether both may be packed at once: no shard belongs to both."""
        return self.of == other.of and self.number != other.number


def part_of(text: str) -> PackingShare:
    """Read `I/N`. Raises InputError, which names --part."""
    match = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text, re.ASCII)
    part = PackingShare(*map(int, match.groups())) if match else PackingShare(0, 0)
    if not part.number < part.of <= _MOST_PARTS:
        raise InputError(f"--part {text}: expected I/N with I from 0 to N-1, for example 0/8 to 7/8")
    return part
