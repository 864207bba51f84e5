"""One run of a study: training, evaluations of what it left, one JSON of the figures. Finished runs are skipped.

Stages are called as processes, with the commands a user would type. Commands are written down with names in the place
of folders (SHARDS, WORK, ...), so that a result says how it was made and not where.
"""

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from relic.errors import InputError
from relic.files import write_json

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "compressai", "numpy", "pytorch-msssim")
_FIGURES = ("label", "psnr_db", "ms_ssim", "bpp_estimated", "bpp_real", "num_images", "relu_clipped")
_VALIDATED = ("images_seen", "psnr_db", "ms_ssim", "bpp", "loss")


class Run(NamedTuple):
    """What to train and what to evaluate. In both, `NAME` and `NAME/...` stand for a folder of `Study.places`."""

    name: str
    """Of its JSON, and of its folder below WORK."""
    evaluate: Mapping[str, str]
    """Title of an evaluation -> arguments of `evaluate/run.py`, without --out."""
    train: str = ""
    """Arguments of `train/main.py`, without --save_dir (which is WORK/name); empty: nothing is trained."""
    settings: Mapping[str, Any] = {}
    """What tables sort and name the run by; goes into the JSON as it is."""
    validations: bool = False
    """Keep the trainer's own validations: a list by `images_seen`."""


class Study(NamedTuple):
    """Where runs read and write."""

    out: Path
    """Folder of the results, one JSON per run."""
    places: Mapping[str, Path]
    """Folders by the names that commands have for them; WORK, for checkpoints, is one."""

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a run that is finished: its JSON holds these very commands; else None."""
        path = self.out / f"{run.name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return found if _commands_of(found) == _commands_of(_blank(run)) else None

    def finish(self, run: Run) -> dict[str, Any]:
        """Train, evaluate and write the JSON, unless that is done; return its content.

        A training that was cut goes on where it was if `run.train` has --resume auto. Raises InputError when a command
        fails; nothing is written then.
        """
        done = self.result(run)
        if done is not None:
            log.info("%s: finished before", run.name)
            return done
        made = _blank(run)
        if run.train:
            self.train(run)
        if run.validations:
            lines = (self.places["WORK"] / run.name / "metrics.jsonl").read_text().splitlines()
            events = [event for event in map(json.loads, lines) if event["event"] == "validate"]
            # A finished run that is started again validates once more.
            last = {event["images_seen"]: {name: event[name] for name in _VALIDATED} for event in events}
            if max(last) < run.settings.get("images", 0):
                raise InputError(f"{run.name}: its training was stopped; start the study again and it goes on")
            made["validations"] = list(last.values())
        for title, evaluation in made["evaluations"].items():
            self._call(run.name, evaluation["command"])
            metrics = json.loads((self.places["WORK"] / run.name / title / "metrics.json").read_text())
            evaluation["figures"] = [{name: codec[name] for name in _FIGURES} for codec in metrics["summary"]]
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / f"{run.name}.json", made)
        return made

    def train(self, run: Run) -> None:
        """Train without evaluating: for a run whose checkpoint another one starts from."""
        self._call(run.name, str(_blank(run)["train"]))

    def _call(self, name: str, command: str) -> None:
        log.info("%s: %s", name, command)
        words = [self._place(word) for word in shlex.split(command)[1:]]
        if subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
            raise InputError(f"{name}: `{command}` failed; the lines above say why. Finished runs are kept")

    def _place(self, word: str) -> str:
        name, slash, rest = word.partition("/")
        return f"{self.places[name].resolve()}{slash}{rest}" if name in self.places else word


def _blank(run: Run) -> dict[str, Any]:
    """A result whose evaluations have no figures yet."""
    folder = f"WORK/{run.name}"
    evaluations = {
        title: {"command": f"python evaluate/run.py {arguments} --out {folder}/{title}"}
        for title, arguments in run.evaluate.items()
    }
    return {
        "name": run.name,
        "settings": dict(run.settings),
        "train": f"python train/main.py {run.train} --save_dir {folder}" if run.train else None,
        "evaluations": evaluations,
        "versions": {package: version(package) for package in _PACKAGES},
    }


def _commands_of(result: Mapping[str, Any]) -> list[str | None]:
    return [result["train"], *(evaluation["command"] for evaluation in result["evaluations"].values())]
