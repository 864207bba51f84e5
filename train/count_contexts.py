"""Count context tables for a checkpoint: `python train/count_contexts.py --checkpoint A.pt --shards S --out B.pt`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if not __package__:  # run as a file: same import root as `python -m train.count_contexts`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.codec.constants import EMBEDDED
from relic.errors import InputError, before_work, command
from relic.options import Device
from relic.storage.remote_file import find_file, local_name
from relic.storage.spec import resolve_shards

PROG = "train/count_contexts.py"


@dataclass(frozen=True)
class ContextsConfig:
    """Count context tables on the crops of a training set. They make streams smaller and leave the codec as it is."""

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "codec": ("checkpoint", "out"),
        "data": ("shards", "crops"),
        "machine": ("device",),
    }

    checkpoint: str
    """A checkpoint of relic or a state dict file of CompressAI, as a path or a URL, or `embedded`."""
    shards: str
    """Folder of shards, or tars or URLs. Its `train` crops are counted."""
    out: Path
    """The checkpoint to write: the same with context tables. May be --checkpoint itself."""
    crops: int = 512
    """Crops to count, spread evenly over the split; all if it has fewer."""
    device: Device = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag. Reads no file."""
        if self.crops < 1:
            raise InputError(f"--crops {self.crops}: must be 1 or more")


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Count and write. Exit code 0: done; 1: it failed; 2: the flags are refused."""
    config = parse(ContextsConfig, argv, prog=PROG)
    with before_work():
        if config.checkpoint != EMBEDDED:
            find_file(config.checkpoint, flag="--checkpoint", otherwise=f"give a checkpoint, or `{EMBEDDED}`")
        if config.out.is_dir() or not config.out.parent.is_dir():
            raise InputError(f"--out {config.out}: name a file in a folder that is there")
        shards = resolve_shards(config.shards, "train")

    from relic.distributed import join_world
    from train.contexts import add_contexts_to, describe_contexts

    with join_world(config.device, PROG) as world:
        contexts = add_contexts_to(local_name(config.checkpoint), config.out, shards, config.crops, world.device)
    print(f"{config.out}: {describe_contexts(contexts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
