"""What INT8 costs a ReLU codec, by how it is quantized: `python studies/int8.py --shards D --images D`.

Trains, exports and evaluates the runs of int8.yaml, and fills the table of docs/int8.md.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: same import root as `python -m studies.int8`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from relic.cli import parse
from relic.codec.bd_rate import bd_rate
from relic.columns import markdown_table
from relic.errors import InputError, before_work, command
from relic.files import atomic_write
from studies.pages import fill_tables
from studies.runs import ROOT, PlannedRun, Run, Study, check_places

PROG = "studies/int8.py"
_PLAN = Path(__file__).with_suffix(".yaml")
_PAGE = ROOT / "docs" / "int8.md"
_COMPARED = ("percentile", "learned", "qat")
"""The kinds of the noise table, and of the table beside GDN."""
_ANCHOR = "gdn"


@dataclasses.dataclass(frozen=True)
class Int8Config:
    """Quantize ReLU codecs of four rates in several ways and evaluate the files. The runs are in int8.yaml.

    Every run writes a JSON file to --out. If the command is started again, it skips finished runs.
    """

    shards: Path
    """Folder of shards of 224x224 crops, with train and val."""
    images: Path
    """Folder of images that are not used for training, for example Kodak's."""
    teachers: Path
    """Folder of GDN codecs, teacher-RATE.pt for each --lambda_bpp RATE, as studies/teachers.py makes it."""
    work: Path = ROOT / "checkpoints" / "int8"
    """Folder for checkpoints, exports and evaluations."""
    out: Path = ROOT / "docs" / "int8"
    """Folder of the results."""
    epochs: int = 2
    """Passes over the train shards in each training."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: must be 1 or more")


class Int8Cost(NamedTuple):
    """INT8 against the same codec in float."""

    psnr_db: float
    bpp_change: float


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Finish every run that is not finished. After each run, fill the table again."""
    config = parse(Int8Config, argv, prog=PROG)
    with before_work():
        check_places(config.shards, config.images, work=config.work, out=config.out)
        rates = _rates_of(config.teachers)
    places = {"SHARDS": config.shards, "IMAGES": config.images, "TEACHERS": config.teachers, "WORK": config.work}
    for results in Study(config.out, places).finish_all(read_int8_plan(config.epochs, rates)):
        _fill(results)
    print(f"written: {_PAGE}")
    return 0


def _fill(results: Mapping[str, Mapping[str, Any]]) -> None:
    made_by = {"study": table, "gdn": beside_gdn, "noise": noise_table}
    text = fill_tables(_PAGE.read_text(), {name: functools.partial(make, results) for name, make in made_by.items()})
    with atomic_write(_PAGE, "w") as file:
        file.write(text)


def _rates_of(teachers: Path) -> list[str]:
    found = [path.stem.removeprefix("teacher-") for path in sorted(teachers.glob("teacher-*.pt"))]
    if not found:
        raise InputError(f"--teachers {teachers}: holds no teacher-RATE.pt; studies/teachers.py makes them")
    return found


def read_int8_plan(epochs: int, rates: Sequence[str]) -> list[PlannedRun]:
    """The runs of int8.yaml: each group of kinds at all rates."""
    data = yaml.safe_load(_PLAN.read_text())
    plan = []
    for group, rate in itertools.product(data["kinds"], rates):
        common = f"{data['common'].format(rate=rate)} --epochs {epochs}"
        start = f"TEACHERS/teacher-{rate}.pt"
        for kind, values in group.items():
            name, parts = f"{kind}-{rate}", values.get("parts", "all")
            settings = {"kind": kind, "rate": rate}
            if kind == _ANCHOR:
                evaluate = _evaluations(data, values["evaluate"].format(start=start))
                plan.append(PlannedRun(Run(name, evaluate, settings=settings)))
                continue
            folder = f"float-{rate}" if parts == "all" else f"float-{parts}-{rate}"
            swap = _training(folder, data["swap"].format(pretrained=start, parts=parts), common)
            codec = f"WORK/{folder}/last.pt"
            words = {"name": name, "float": codec, "parts": parts}
            words["checkpoint"] = f"WORK/{name}/last.pt" if values.get("trained") else codec
            train = f"{common} {data['qat'].format(pretrained=codec, **words)}" if values.get("trained") else ""
            evaluate = _evaluations(data, data["evaluate"].format(**words))
            export = f"{data['export'].format(**words)} {values.get('flags', '')}".strip()
            plan.append(PlannedRun(Run(name, evaluate, train, settings, export=export), [swap]))
    return plan


def _evaluations(data: Mapping[str, Any], arguments: str) -> dict[str, str]:
    return {title: f"{arguments} {images}" for title, images in data["sets"].items()}


def _training(name: str, arguments: str, common: str) -> Run:
    return Run(name, {}, f"{common} {arguments}")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per kind: the loss at each rate on each set, and the BD-rate where all rates are there."""
    kinds, rates, titles = _names(results)
    rows = [_head("quantized by", titles, rates)]
    for kind in kinds:
        if kind == _ANCHOR:
            continue
        cells = [kind]
        for title in titles:
            for rate in rates:
                found = results.get(f"{kind}-{rate}")
                cells.append("" if found is None else _cell(loss_of(found, title)))
        for title in titles:
            percent = bd_rate_of([results[name] for rate in rates if (name := f"{kind}-{rate}") in results], title)
            cells.append("" if percent is None else f"{percent:+.1f} %")
        rows.append(cells)
    return markdown_table(rows) + "\n"


def beside_gdn(results: Mapping[str, Mapping[str, Any]]) -> str:
    """GDN in float, coded as CompressAI codes it; ReLU with contexts in float and INT8; BD-rates to that GDN."""
    kinds, rates, titles = _names(results)
    if _ANCHOR not in kinds:
        return ""
    curves = {"GDN, float, without contexts": (_ANCHOR, 0), "ReLU, float": (_COMPARED[0], 0)}
    curves |= {f"ReLU, INT8, `{kind}`": (kind, 1) for kind in _COMPARED}
    rows = [_head("codec", titles, rates)]
    for label, (kind, place) in curves.items():
        cells = [label]
        points = {
            (title, rate): _point(results[name], title, place)
            for title, rate in itertools.product(titles, rates)
            if (name := f"{kind}-{rate}") in results
        }
        for key in itertools.product(titles, rates):
            cells.append(f"{points[key][1]:.2f} dB, {points[key][0]:.4f}" if key in points else "")
        for title in titles:
            anchor = [_point(each, title, 0) for each in results.values() if each["settings"]["kind"] == _ANCHOR]
            curve = [point for (other, _), point in points.items() if other == title]
            found = None if kind == _ANCHOR else bd_rate(anchor, curve)
            cells.append("" if found is None else f"{found.percent:+.1f} %")
        rows.append(cells)
    return markdown_table(rows) + "\n"


def _names(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """The kinds, rates and evaluations of these results."""
    settings = [result["settings"] for result in results.values()]
    kinds, rates = (list(dict.fromkeys(each[name] for each in settings)) for name in ("kind", "rate"))
    return kinds, rates, list(next(iter(results.values()))["evaluations"])


def _head(first: str, titles: Sequence[str], rates: Sequence[str]) -> list[str]:
    named = [f"{title}, λ {rate}" for title, rate in itertools.product(titles, rates)]
    return [first, *named, *(f"BD-rate, {title}" for title in titles)]


def noise_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per 8-bit activation: its SQNR with each of `_COMPARED`, at the first rate that has them all."""
    rates = list(dict.fromkeys(result["settings"]["rate"] for result in results.values()))
    for rate in rates:
        found = [results.get(f"{kind}-{rate}", {}).get("layers") for kind in _COMPARED]
        if all(found):
            break
    else:
        return ""
    rows = [["part", "8-bit activation of", *(f"{kind}, dB" for kind in _COMPARED)]]
    for layers in zip(*found, strict=True):
        rows.append([layers[0]["part"], _layer(layers[0]["node"]), *(f"{one['sqnr_db']:.1f}" for one in layers)])
    return markdown_table(rows, left=2) + "\n"


def _layer(node: str) -> str:
    """`g_a.1 Relu` of `/g_a/g_a.1/Relu`."""
    _, *names = node.split("/")
    return f"{names[1]} {names[-1]}" if names else node


def loss_of(result: Mapping[str, Any], title: str) -> Int8Cost:
    """PSNR lost, and the relative change of the real rate."""
    before, after = result["evaluations"][title]["figures"]
    return Int8Cost(before["psnr_db"] - after["psnr_db"], after["bpp_real"] / before["bpp_real"] - 1)


def bd_rate_of(results: Sequence[Mapping[str, Any]], title: str) -> float | None:
    """BD-rate in percent (PSNR, Akima) of the INT8 codecs against the same codecs in float; None for too few rates."""
    found = bd_rate(*([_point(result, title, place) for result in results] for place in (0, 1)))
    return found and found.percent


def _point(result: Mapping[str, Any], title: str, place: int) -> tuple[float, float]:
    figures = result["evaluations"][title]["figures"][place]
    return figures["bpp_real"], figures["psnr_db"]


def _cell(loss: Int8Cost) -> str:
    return f"{-loss.psnr_db:+.2f} dB, {100 * loss.bpp_change:+.1f} %"


if __name__ == "__main__":
    sys.exit(main())
