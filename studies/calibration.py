"""What a calibrated swap is worth, before and after training: `python studies/calibration.py --shards D --images D`."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: same import root as `python -m studies.calibration`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.errors import InputError, command
from relic.files import atomic_write, check_folder
from relic.shards.shard_set import open_shard_set
from studies.runs import ROOT, Run, Study

PROG = "studies/calibration.py"
EMBEDDED_RATE = "0.0023"
"""lambda_bpp that the embedded codec was trained with."""
_OTHER_RATES = ("0.0046", "0.0092", "0.0012")
_BATCH_SIZE = 16
_LOSS = "--loss_type rd --distortion mse --lambda_bpp"
_LR = "1e-4"
"""A constant rate of 1e-3 takes a calibrated codec from 30.0 to 26.8 dB in 2,000 images; naive ones take it better."""
_LR_OF_NAIVE = "1e-3"
_DISTILL = "0.01"
_LR_PRECONDITIONED = "2e-3"
"""After 4,000 images better than 1e-3 (a loss of 0.00192 against 0.00193)."""
_TEACHING = "--replace_parts none --train_scope all --lr 5e-4 --sched onecycle"
"""Turns the embedded codec into the GDN codec of another rate."""
_LONG = 5
"""Times as many images as the others have: a naive run that shows what calibration is worth."""


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Swap the embedded codec naively and calibrated, with and without distillation, fine-tune and evaluate.

    Every run is a JSON in --out; finished ones are skipped when the command is started again. The page and figures
    beside --out are made from the JSONs alone.
    """

    shards: Path
    """Folder of shards of 224x224 crops, with train and val."""
    images: Path
    """Folder of pictures that nothing is trained on, as Kodak's."""
    work: Path = ROOT / "checkpoints" / "calibration"
    """Folder for checkpoints and evaluations."""
    out: Path = ROOT / "docs" / "calibration"
    """Folder of the results and figures; the page is written to this name with .md."""
    epochs: int = 2
    """Passes over the train shards in each run."""

    def __post_init__(self) -> None:
        for split in ("train", "val"):
            open_shard_set(self.shards, split)
        if not self.images.is_dir():
            raise InputError(f"--images {self.images}: no such folder")
        for flag, folder in (("--work", self.work), ("--out", self.out)):
            check_folder(flag, folder)
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: must be 1 or more")


class Planned(NamedTuple):
    """A run and the teacher its weights come from."""

    run: Run
    teacher: Run | None = None
    """None: the embedded codec."""


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Finish every run that is not, making page and figures anew after each."""
    config = parse(CalibrationConfig, argv, prog=PROG)

    from studies.calibration_figures import draw
    from studies.calibration_page import render

    study = Study(config.out, {"SHARDS": config.shards, "IMAGES": config.images, "WORK": config.work})
    plan = runs(config.epochs, open_shard_set(config.shards, "train").num_samples)
    page = config.out.with_name(f"{config.out.name}.md")
    for number, (run, teacher) in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}] {run.name}", flush=True)
        if teacher is not None and study.result(run) is None and not (config.work / teacher.name / "last.pt").exists():
            study.train(teacher)
        study.finish(run)
        results = {each.name: result for each, _ in plan if (result := study.result(each))}
        figures = draw(results, config.out)
        with atomic_write(page, "w") as file:
            file.write(render(results, [f"{config.out.name}/{figure.name}" for figure in figures]))
    print(f"written: {page}")
    return 0


def runs(epochs: int, num_samples: int) -> list[Planned]:
    """The most telling first: the untrained swaps, both sides fine-tuned, the other rates, then the single sides."""
    images = epochs * (num_samples // _BATCH_SIZE) * _BATCH_SIZE
    plan = [Planned(_judged("original", "embedded", {"rate": EMBEDDED_RATE, "init": "gdn", "images": 0}))]
    for part in ("all", "encoder", "decoder"):
        for init in ("naive", "calibrated"):
            settings = {"rate": EMBEDDED_RATE, "part": part, "init": init, "distill": "0", "images": 0}
            plan.append(Planned(_student(f"{part}-{init}-untrained", settings, "embedded", epochs=0)))
    plan += _tuned("all", EMBEDDED_RATE, None, epochs, images)
    settings = {"rate": EMBEDDED_RATE, "part": "all", "init": "naive", "distill": "0", "lr": _LR_OF_NAIVE}
    faster = _student("all-naive-faster", settings | {"images": images}, "embedded", epochs=epochs, lr=_LR_OF_NAIVE)
    for rate in _OTHER_RATES:
        name = f"teacher-{rate}"
        train = f"{_data('embedded', rate, epochs)} {_TEACHING}"
        settings_of = {"rate": rate, "init": "gdn", "images": images}
        teacher = _judged(name, f"WORK/{name}/last.pt", settings_of, train)
        untrained = {"rate": rate, "part": "all", "init": "calibrated", "distill": "0", "images": 0}
        source = f"WORK/{name}/last.pt"
        plan += [
            Planned(teacher),
            Planned(_student(f"all-calibrated-untrained-{rate}", untrained, source, epochs=0), teacher),
            *_tuned("all", rate, teacher, epochs, images),
        ]
        if rate == _OTHER_RATES[0]:
            plan.append(Planned(faster))
    for part in ("encoder", "decoder"):
        plan += _tuned(part, EMBEDDED_RATE, None, epochs, images)
    preconditioned = settings | {"images": images, "lr": _LR_PRECONDITIONED, "precondition": True}
    shifted = _student("all-naive-preconditioned", preconditioned, "embedded", epochs=epochs, lr=_LR_PRECONDITIONED)
    longer = _student(
        "all-naive-longer", settings | {"images": _LONG * images}, "embedded", epochs=_LONG * epochs, lr=_LR_OF_NAIVE
    )
    return [*plan, Planned(shifted), Planned(longer)]


def _tuned(part: str, rate: str, teacher: Run | None, epochs: int, images: int) -> list[Planned]:
    """Naive, calibrated, and calibrated with preconditioning or with distillation."""
    suffix = "" if rate == EMBEDDED_RATE else f"-{rate}"
    source = "embedded" if teacher is None else f"WORK/{teacher.name}/last.pt"
    common: dict[str, Any] = {
        "rate": rate,
        "part": part,
        "init": "calibrated",
        "distill": "0",
        "images": images,
        "lr": _LR,
    }
    kinds: dict[str, dict[str, Any]] = {
        "calibrated": {},
        "naive": {"init": "naive"},
        "preconditioned": {"precondition": True, "lr": _LR_PRECONDITIONED},
        "distilled": {"distill": _DISTILL},
    }
    settings = {kind: common | own for kind, own in kinds.items()}
    return [
        Planned(_student(f"{part}-{kind}{suffix}", each, source, epochs=epochs, lr=each["lr"]), teacher)
        for kind, each in settings.items()
    ]


def _data(source: str, rate: str, epochs: int) -> str:
    often = f"--epochs {epochs} --batch_size {_BATCH_SIZE} --recon_every 0 --resume auto"
    return f"--shards SHARDS --pretrained {source} {_LOSS} {rate} {often}"


def _student(name: str, settings: Mapping[str, Any], source: str, *, epochs: int, lr: str = _LR) -> Run:
    train = (
        f"{_data(source, settings['rate'], epochs)} --replace_parts {settings['part']} --swap_init {settings['init']} "
        f"--lr {lr} --sched onecycle --save_every_steps 25 --validate_every_steps 25"
    )
    if settings["distill"] != "0":
        train += f" --distill {settings['distill']}"
    if settings.get("precondition"):
        train += " --precondition"
    return _judged(name, f"WORK/{name}/last.pt", settings, train)


def _judged(name: str, checkpoint: str, settings: Mapping[str, Any], train: str = "") -> Run:
    judge = f"--checkpoint {checkpoint} --recon_count 0"
    evaluations = {"val": f"{judge} --shards SHARDS", "kodak": f"{judge} --images IMAGES"}
    return Run(name, evaluations, train, settings, validations=bool(train) and "part" in settings)


if __name__ == "__main__":
    sys.exit(main())
