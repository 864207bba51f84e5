"""What fine-tuning brings back, by part, scope and loss: `python studies/fine_tuning.py --shards D`."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: same import root as `python -m studies.fine_tuning`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import InputError, command
from relic.files import atomic_write, check_folder
from relic.shards.shard_set import open_shard_set
from studies.fine_tuning_table import ORIGINAL, TITLE, render, run_name
from studies.runs import ROOT, Run, Study

PROG = "studies/fine_tuning.py"
_PARTS = ("all", "encoder", "decoder")
_SCOPES = ("replaced", "replaced+hyper", "all")
_RATE = "--lr 1e-3 --sched onecycle"
"""Lowest validation loss of one epoch of `all`, `rd` at lambda 0.03: 0.0804. Constant rates: 1e-3 gave 0.0817, 3e-4
0.0814 at a higher rate in bpp, 3e-3 0.1158."""
_LAMBDA_BPP = "0.045"
"""Brings `all` after `rd` near the embedded codec's 0.289 bpp: 0.03 gave 0.315, each 0.01 more takes about 0.013."""
_BATCH_SIZE = 16
_VAL = "--shards SHARDS --recon_count 0"


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """Swap GDN for ReLU in the embedded codec, fine-tune by part, scope and loss, and evaluate before and after.

    Every run is a JSON in --out; finished ones are skipped when the command is started again. The table beside --out
    is made from the JSONs alone.
    """

    shards: Path
    """Folder of shards of 224x224 crops, with train and val."""
    work: Path = ROOT / "checkpoints" / "fine_tuning"
    """Folder for checkpoints and evaluations."""
    out: Path = ROOT / "docs" / "fine_tuning"
    """Folder of the results; the table is written to this name with .md."""
    epochs: int = 1
    """Passes over the train shards in each run."""

    def __post_init__(self) -> None:
        for split in ("train", "val"):
            open_shard_set(self.shards, split)
        for flag, folder in (("--work", self.work), ("--out", self.out)):
            check_folder(flag, folder)
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: must be 1 or more")


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Finish every run that is not, rendering the table after each."""
    config = parse(FineTuningConfig, argv, prog=PROG)
    study = Study(config.out, {"SHARDS": config.shards, "WORK": config.work})
    plan = runs(config.epochs, open_shard_set(config.shards, "train").num_samples)
    table = config.out.with_name(f"{config.out.name}.md")
    for number, run in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}] {run.name}", flush=True)
        study.finish(run)
        _write(table, {run.name: result for run in plan if (result := study.result(run))})
    print(f"written: {table}")
    return 0


def runs(epochs: int, num_samples: int) -> list[Run]:
    """The original, then for each part the untrained swap and every scope and loss, the most telling part first."""
    plan = [Run(ORIGINAL, {TITLE: f"--checkpoint embedded {_VAL}"})]
    images = epochs * (num_samples // _BATCH_SIZE) * _BATCH_SIZE
    for part in _PARTS:
        swap = f"--shards SHARDS --pretrained embedded --swap_init naive --replace_parts {part} --recon_every 0"
        plan.append(_run(f"{part}-untrained", f"{swap} --epochs 0", {"part": part, "images": 0}))
        rows = [(scope, loss) for loss in ("rd", "recon") for scope in _SCOPES]
        for name, (scope, loss) in {run_name(part, *row): row for row in reversed(rows)}.items():
            flags = (
                f"{swap} --train_scope {scope} --loss_type {loss} --epochs {epochs} --batch_size {_BATCH_SIZE} {_RATE}"
            )
            flags += f" --lambda_bpp {_LAMBDA_BPP}" if loss == "rd" else ""
            plan.append(_run(name, flags, {"part": part, "scope": scope, "loss": loss, "images": images}))
    return plan


def _run(name: str, flags: str, settings: Mapping[str, Any]) -> Run:
    train = f"{flags} --save_every_steps 25 --resume auto"
    return Run(name, {TITLE: f"--checkpoint WORK/{name}/last.pt {_VAL}"}, train, settings)


def _write(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    with atomic_write(path, "w") as file:
        file.write(render(results))


if __name__ == "__main__":
    sys.exit(main())
