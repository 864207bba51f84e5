"""One run of a study: train, export, evaluate, write the figures to a JSON file. Finished runs are skipped.

The commands are those that a user would type, and run as processes. They are stored with names instead of folders
(SHARDS, WORK, ...), so that a result does not depend on where it was made.
"""

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from relic.errors import InputError
from relic.files import check_folder, write_json
from relic.pictures.listing import list_images
from relic.shards.shard_set import ShardSet, open_shard_set

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "compressai", "numpy", "pytorch-msssim")
_FIGURES = ("label", "psnr_db", "ms_ssim", "bpp_estimated", "bpp_real", "num_images", "relu_clipped")
_VALIDATED = ("images_seen", "psnr_db", "ms_ssim", "bpp", "loss")


class Run(NamedTuple):
    """What to train and what to evaluate. In both, `NAME` and `NAME/...` are replaced by a folder of `Study.places`."""

    name: str
    """Name of its JSON file, and of its folder in WORK."""
    evaluate: Mapping[str, str]
    """Title of an evaluation -> arguments of `evaluate/run.py`, without --out."""
    train: str = ""
    """Arguments of `train/main.py`, without --save_dir (which is WORK/name). Empty: no training."""
    settings: Mapping[str, Any] = {}
    """Values that describe the run in tables. Stored in the JSON file without change."""
    export: str = ""
    """Arguments of `export/onnx_parts.py`, without --out (which is WORK/name/onnx). Empty: no export."""
    validations: bool = False
    """Whether to store the trainer's validations, a list in the order of `images_seen`."""


class PlannedRun(NamedTuple):
    """A run, and the trainings that it needs, in order."""

    run: Run
    before: Sequence[Run] = ()


class Study(NamedTuple):
    """The folders that runs read and write."""

    out: Path
    """Folder of the results, one JSON file per run."""
    places: Mapping[str, Path]
    """Name in commands -> folder. WORK, the folder of checkpoints, is one of them."""

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a finished run; None if its JSON file is missing or holds other commands."""
        path = self.out / f"{run.name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return found if _commands_of(found) == _commands_of(_blank(run)) else None

    def finish_all(self, plan: Sequence[PlannedRun]) -> Iterator[dict[str, dict[str, Any]]]:
        """Finish every run that is not finished. After each run, yield the results of all finished ones, by name."""
        for number, (run, before) in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {run.name}", flush=True)
            if self.result(run) is None:
                for training in before:
                    self.train(training)
            self.finish(run)
            yield {each.name: result for each, _ in plan if (result := self.result(each))}

    def finish(self, run: Run) -> dict[str, Any]:
        """Train, evaluate and write the JSON file, unless the run is finished. Returns the content of the file.

        A training that was stopped continues if `run.train` has --resume auto. Raises InputError if a command fails;
        then no file is written.
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
            # If a finished training is started again, it validates once more.
            last = {event["images_seen"]: {name: event[name] for name in _VALIDATED} for event in events}
            made["validations"] = list(last.values())
        if run.export:
            self._call(run.name, made["export"])
            exported = json.loads((self.places["WORK"] / run.name / "onnx" / "export.json").read_text())
            made["layers"] = (exported["int8"] or {}).get("layers", [])
        for title, evaluation in made["evaluations"].items():
            self._call(run.name, evaluation["command"])
            metrics = json.loads((self.places["WORK"] / run.name / title / "metrics.json").read_text())
            evaluation["figures"] = [{name: codec[name] for name in _FIGURES} for codec in metrics["summary"]]
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / f"{run.name}.json", made)
        return made

    def train(self, run: Run) -> None:
        """Train without evaluating. Raises InputError if the training was stopped before its last epoch.

        A finished training is not repeated if `run.train` has --resume auto: it only validates once more.
        """
        self._call(run.name, str(_blank(run)["train"]))
        folder = self.places["WORK"] / run.name
        epochs = yaml.safe_load((folder / "config.yaml").read_text())["epochs"]
        events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if max(event["epoch"] for event in events if event["event"] == "validate") < epochs:
            raise InputError(f"{run.name}: its training was stopped; start the study again to continue it")

    def _call(self, name: str, command: str) -> None:
        log.info("%s: %s", name, command)
        words = [self._place(word) for word in shlex.split(command)[1:]]
        if subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
            raise InputError(f"{name}: `{command}` failed; the lines above say why. Finished runs are kept")

    def _place(self, word: str) -> str:
        name, slash, rest = word.partition("/")
        return f"{self.places[name].resolve()}{slash}{rest}" if name in self.places else word


def check_places(shards: Path, images: Path, *, work: Path, out: Path) -> ShardSet:
    """The train split of a study's shards. Raises InputError, naming the flag, for a place that does not fit."""
    train, _ = (open_shard_set(shards, split) for split in ("train", "val"))
    list_images(images)
    for flag, folder in (("--work", work), ("--out", out)):
        check_folder(flag, folder)
    return train


def _blank(run: Run) -> dict[str, Any]:
    """The result of a run without the figures of its evaluations."""
    folder = f"WORK/{run.name}"
    evaluations = {
        title: {"command": f"python evaluate/run.py {arguments} --out {folder}/{title}"}
        for title, arguments in run.evaluate.items()
    }
    made = {
        "name": run.name,
        "settings": dict(run.settings),
        "train": f"python train/main.py {run.train} --save_dir {folder}" if run.train else None,
        "evaluations": evaluations,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    if run.export:
        made["export"] = f"python export/onnx_parts.py {run.export} --out {folder}/onnx"
    return made


def _commands_of(result: Mapping[str, Any]) -> list[str | None]:
    return [
        result["train"],
        result.get("export"),
        *(evaluation["command"] for evaluation in result["evaluations"].values()),
    ]
