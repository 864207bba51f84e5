"""Check a folder of shards: `python prep/verify_shards.py --shards D`."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m prep.verify_shards`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from prep.config import VerifyConfig
from relic.cli import parse
from relic.columns import counted
from relic.errors import RefusedError, command

PROG = "prep/verify_shards.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Verify each split in the folder and print each fault."""
    config = parse(VerifyConfig, argv, prog=PROG)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    if not config.shards.is_dir():
        raise RefusedError(f"--shards {config.shards}: no such folder")
    from prep.verifying import verify_split
    from relic.machine import available_cores
    from relic.shards.manifest import read_manifest
    from relic.shards.shard_set import plan_path

    manifests = {split: read_manifest(config.shards, split) for split in ("train", "val")}
    unfinished = [split for split in manifests if plan_path(config.shards, split).exists()]
    if unfinished:
        print(f"{plan_path(config.shards, unfinished[0])}: packing was not finished; run the same make_shards.py again")
    elif not any(manifests.values()):
        what = "holds no train.json and no val.json; prep/make_shards.py writes them"
        raise RefusedError(f"--shards {config.shards}: {what}")
    faults = len(unfinished)
    for split, manifest in manifests.items():
        if manifest is None:
            continue
        report = verify_split(config.shards, manifest, threads=available_cores())
        for fault in report.faults:
            print(fault)
        faults += len(report.faults)
        found = f"{counted(report.samples, 'sample')} in {counted(report.shards, 'shard')}"
        print(f"{split}: {found}, {counted(len(report.faults), 'fault')}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
