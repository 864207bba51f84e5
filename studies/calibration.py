"""Compare calibrated and naive swaps, before and after training: `python studies/calibration.py --shards D --images D`.

Trains and evaluates the runs of calibration.yaml, and makes the figures and tables of docs/calibration.md.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: same import root as `python -m studies.calibration`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml
from jinja2 import StrictUndefined, Template

from relic.cli import parse
from relic.errors import InputError, before_work, command
from relic.files import atomic_write
from studies.runs import ROOT, PlannedRun, Run, Study, check_places

PROG = "studies/calibration.py"
_PLAN = Path(__file__).with_suffix(".yaml")
_PAGE = ROOT / "docs" / "calibration.md"


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Swap the embedded codec naively and calibrated, fine-tune and evaluate. The runs are in calibration.yaml.

    Every run writes a JSON file to --out. If the command is started again, it skips finished runs. The figures in --out
    and the tables of the page are made from these files alone.
    """

    shards: Path
    """Folder of shards of 224x224 crops, with train and val."""
    images: Path
    """Folder of images that are not used for training, for example Kodak's."""
    work: Path = ROOT / "checkpoints" / "calibration"
    """Folder for checkpoints and evaluations."""
    out: Path = ROOT / "docs" / "calibration"
    """Folder of the results and figures. The page has this name with .md."""
    epochs: int = 2
    """Passes over the train shards in each run."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: must be 1 or more")


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Finish every run that is not finished. After each run, make the figures and the tables of the page again."""
    config = parse(CalibrationConfig, argv, prog=PROG)
    with before_work():
        crops = check_places(config.shards, config.images, work=config.work, out=config.out)

    from studies.calibration_figures import draw
    from studies.calibration_page import fill

    study = Study(config.out, {"SHARDS": config.shards, "IMAGES": config.images, "WORK": config.work})
    plan = read_calibration_plan(config.epochs, crops.num_samples)
    page = config.out.with_name(f"{config.out.name}.md")
    for results in study.finish_all(plan):
        draw(results, config.out)
        text = fill((page if page.exists() else _PAGE).read_text(), results)
        with atomic_write(page, "w") as file:
            file.write(text)
    print(f"written: {page}")
    return 0


def read_calibration_plan(epochs: int, num_samples: int) -> list[PlannedRun]:
    """The runs of calibration.yaml, for `epochs` passes over a train split of `num_samples` crops."""
    data = yaml.safe_load(_PLAN.read_text())
    images = epochs * (num_samples // data["batch_size"]) * data["batch_size"]
    plan = []
    for line in data["runs"]:
        values = data["defaults"] | line
        name, trained = values.pop("name"), values.pop("trained")
        words = values | {
            "checkpoint": "embedded" if trained is None else f"WORK/{name}/last.pt",
            "batch_size": data["batch_size"],
            "epochs": epochs if trained else 0,
        }
        train = "" if trained is None else _filled(data["train"], words)
        evaluate = {title: _filled(arguments, words) for title, arguments in data["evaluate"].items()}
        settings = values | {"images": images if trained else 0}
        plan.append(PlannedRun(Run(name, evaluate, train, settings, validations=bool(train))))
    return plan


def _filled(arguments: str, words: Mapping[str, Any]) -> str:
    name: str = Template(arguments, undefined=StrictUndefined).render(words)
    return name


if __name__ == "__main__":
    sys.exit(main())
