"""One rank of a reader that `torchrun` starts: writes the keys of its batches, and of every sample read from a shard.

python tests/loader/read_ranks.py SHARDS OUT IMAGES_PER_STEP
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.loader.open_shard import OpenShard
from relic.loader.order import epoch_order, eval_batches, train_batches
from relic.storage.spec import resolve_shards


def main(shards_spec: str, out: str, images_per_step: int) -> None:
    """Read one epoch of train batches, then the set once as evaluation does."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shards = resolve_shards(shards_spec, "train")
    read: list[str] = []
    fill = OpenShard._fill

    def spy(self: OpenShard, buffers: Sequence[memoryview], offset: int, least: int, place: int) -> None:
        read.append(self.key(place))
        fill(self, buffers, offset, least, place)

    OpenShard._fill = spy  # type: ignore[method-assign]
    found: dict[str, object] = {"read": read}
    with ShardLoader(shards, batch_size=max(2, images_per_step)) as loader:
        try:
            plan = train_batches(epoch_order(shards.samples, 0, 0), images_per_step, rank, world_size)
            found["train"] = [batch.keys for batch in loader.batches(plan)]
        except InputError as error:
            found["train"] = str(error)
        found["eval"] = [b.keys for b in loader.batches(eval_batches(shards.num_samples, 2, rank, world_size))]
    Path(out, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
