"""The tasks that planning gives to the workers."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from prep.images import Images
from relic.pictures.listing import Source
from relic.shards.manifest import Packing


class KeyedSource(NamedTuple):
    """A listed file and the key of its sample."""

    source: Source
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What a worker needs to know to pack one shard."""

    shard: int
    sources: tuple[KeyedSource, ...]
    images: Images
    out_dir: Path
    packing: Packing
    out_url: str | None = None
    """Where the shard is written when it is packed; None: it stays in `out_dir`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareTask(ShardTask):
    """What a worker needs to know to compare images with a shard that is packed. `sources` are those to compare."""

    rejected: frozenset[str]
    """The paths among them that have no crop."""
