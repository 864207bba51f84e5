"""Make GDN codecs of four rates out of the embedded codec: `python studies/teachers.py --shards D --out FOLDER`.

The latents of the embedded codec are scaled by s, so that the quantizer's step is 1/s of what it was. This alone moves
the rate. Then the codec is trained at the rate's lambda. `--wide` adds channels before the training.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: same import root as `python -m studies.teachers`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import before_work, command
from relic.files import atomic_write, check_folder
from relic.shards.shard_set import open_shard_set
from studies.runs import ROOT, Run, Study

PROG = "studies/teachers.py"
_TRAIN = (
    "--shards SHARDS --val_shards VAL --pretrained WORK/start-{rate}.pt --replace_parts none --train_scope all "
    "--loss_type rd --distortion mse --lambda_bpp {rate} --epochs {epochs} --batch_size 16 {optimizer} "
    "--sched onecycle --recon_every 0 --save_every_steps 50 --resume auto"
)


class ScaledCodec(NamedTuple):
    """A GDN codec to make."""

    rate: str
    """--lambda_bpp of its training."""
    scale: float
    """The factor of the embedded codec's latents."""
    epochs: int
    channels: tuple[int, int] | None = None
    """N and M. None: those of the embedded codec."""
    optimizer: str = "--lr 5e-4"


TEACHERS = (
    ScaledCodec("0.0235", 0.25, 1),
    ScaledCodec("0.0074", 0.5, 1),
    ScaledCodec("0.0023", 1, 0),
    ScaledCodec("0.0008", 1.4, 2),
)
WIDE = (ScaledCodec("0.0004", 2, 4, (128, 192), "--optimizer soap --lr 5e-4"),)


@dataclasses.dataclass(frozen=True)
class TeachersConfig:
    """Make GDN codecs of four rates, teacher-RATE.pt, for --teachers of studies/zoo.py and studies/int8.py.

    They span more than 4 dB. If the command is started again, it goes on where it was stopped.
    """

    shards: Path
    """Folder of shards to train on. 12,000 crops of 128x128 suffice."""
    val_shards: Path | None = None
    """Folder of shards of 224x224 crops for validation. By default --shards."""
    out: Path = ROOT / "checkpoints" / "teachers"
    """Folder of the codecs."""
    work: Path = ROOT / "checkpoints" / "teachers" / "work"
    """Folder of the trainings."""
    wide: bool = False
    """Make a codec with N=128 M=192 instead, as CompressAI's, of a higher rate. Give another --out."""


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Train every codec that is not in --out."""
    config = parse(TeachersConfig, argv, prog=PROG)
    val_shards = config.val_shards or config.shards
    with before_work():
        open_shard_set(config.shards, "train")
        open_shard_set(val_shards, "val", flag="--val_shards" if config.val_shards else "--shards")
        for flag, folder in (("--out", config.out), ("--work", config.work)):
            check_folder(flag, folder)
    config.work.mkdir(parents=True, exist_ok=True)
    config.out.mkdir(parents=True, exist_ok=True)

    from studies.scaling import save_scaled

    teachers = WIDE if config.wide else TEACHERS
    study = Study(config.out, {"SHARDS": config.shards, "VAL": val_shards, "WORK": config.work})
    for teacher in teachers:
        made = config.out / f"teacher-{teacher.rate}.pt"
        if made.exists():
            continue
        save_scaled(teacher.scale, teacher.channels, config.work / f"start-{teacher.rate}.pt")
        study.train(Run(made.stem, {}, _TRAIN.format(**teacher._asdict())))
        with open(config.work / made.stem / "last.pt", "rb") as trained, atomic_write(made) as file:
            shutil.copyfileobj(trained, file)
    print(f"written: {', '.join(f'teacher-{each.rate}.pt' for each in teachers)} in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
