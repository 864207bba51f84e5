"""Write packed shards to an object store: `python prep/upload_shards.py --shards D --url s3://bucket/set`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m prep.upload_shards`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from prep.config import UploadConfig
from relic.cli import parse
from relic.columns import counted
from relic.errors import RefusedError, before_work, command

PROG = "prep/upload_shards.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Write each split of the folder that is not in the store, and print what was written."""
    config = parse(UploadConfig, argv, prog=PROG)
    from relic.shards.manifest import read_manifest
    from relic.shards.shard_set import plan_path
    from relic.storage.run_copy import check_store
    from relic.storage.upload import upload_split

    with before_work():
        check_store(config.url, "--url")
        manifests = {split: read_manifest(config.shards, split) for split in ("train", "val")}
    if unfinished := [split for split in manifests if plan_path(config.shards, split).exists()]:
        raise RefusedError(f"--shards {config.shards}: packing {unfinished[0]} was not finished; pack it first")
    if not any(manifests.values()):
        raise RefusedError(f"--shards {config.shards}: no train.json and no val.json; prep/make_shards.py writes them")
    for split, manifest in manifests.items():
        if manifest is not None:
            written = upload_split(config.shards, manifest, config.url)
            print(f"{split}: {counted(written, 'shard')} written, {len(manifest.shards) - written} there before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
