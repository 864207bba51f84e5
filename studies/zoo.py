"""Swap GDN codecs of several rates and compare: `python studies/zoo.py --quality 1..8 --shards D --images D`.

For each codec: contexts are counted for GDN; GDN is replaced by ReLU, calibrated, fine-tuned if asked, exported; both
are evaluated. The table has GDN as CompressAI codes it, and GDN with the same contexts as ReLU has. If ReLU is
fine-tuned, the table also has GDN after the same training.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

if not __package__:  # run as a file: same import root as `python -m studies.zoo`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.codec.bd_rate import bd_rate
from relic.columns import markdown_table
from relic.errors import InputError, before_work, command
from relic.files import atomic_write
from relic.options import Rdoq
from studies.runs import ROOT, PlannedRun, Run, Study, check_places

PROG = "studies/zoo.py"
_LAMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)
"""CompressAI's, by quality: the weight of the squared error in levels of 0 to 255, where relic weights the rate."""
_QUALITIES = re.compile(r"([1-8])(?:\.\.([1-8]))?")
_LAMBDA_OF_NAME = re.compile(r"-(\d+(?:\.\d+)?)\.[a-z]")

_LOAD = "--shards SHARDS {pretrained} --recon_every 0 --resume auto"
_TUNE = (
    "--loss_type rd --distortion mse --lambda_bpp {rate} --optimizer soap --lr {lr} --sched onecycle "
    "--save_every_steps 25 --epochs {epochs}"
)
_UNTRAINED = "--epochs 0"
_SWAPPED = {"relu": "all", "relu-encoder": "encoder", "relu-decoder": "decoder"}
"""Kind of a codec -> where it has ReLU."""
_TRAIN = {
    "gdn": f"{_LOAD} --replace_parts none --train_scope all {_UNTRAINED}",
    "trained": f"{_LOAD} --replace_parts none --train_scope all {{tune}}",
    **{kind: f"{_LOAD} --replace_parts {part} --swap_init calibrated {{tune}}" for kind, part in _SWAPPED.items()},
}
"""How train/main.py makes each kind of codec. `trained` is GDN after the training that ReLU gets."""
_EVALUATE = "--checkpoint WORK/{name}/last.pt --recon_count 0 --references false"
_SETS = {"val": "--shards SHARDS", "images": "--images IMAGES"}


class Row(NamedTuple):
    """A row of the table for each rate."""

    title: str
    kind: str
    """A key of _TRAIN."""
    coding: str
    flags: str = ""
    """How evaluate/run.py codes."""


_PLAIN = Row("GDN", "gdn", "plain", "--contexts false")
_ANCHORS = (_PLAIN, Row("GDN with contexts", "gdn", "contexts"))
_TRAINED = Row("GDN with contexts, fine-tuned", "trained", "contexts")
_RELU = (
    Row("ReLU with contexts", "relu", "contexts"),
    Row("ReLU in the encoder, with contexts", "relu-encoder", "contexts"),
    Row("ReLU in the decoder, with contexts", "relu-decoder", "contexts"),
)


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """Swap GDN codecs, calibrate, evaluate and export them, and print the table with BD-rates.

    Every run writes a JSON file to --out. If the command is started again, it skips finished runs. For other codecs or
    flags, give other folders.
    """

    shards: Path
    """Folder of shards of 224x224 crops, with train and val."""
    images: Path
    """Folder of images that are not used for training, for example Kodak's."""
    quality: list[str] | None = None
    """Qualities of CompressAI's bmshj2018_factorized (mse), such as `1..8` or `1 2 3`. Its weights are downloaded once.
    Give this or --teachers."""
    teachers: Path | None = None
    """Folder of GDN codecs instead, one file per rate: checkpoints of train/main.py, or files of CompressAI's zoo."""
    replace_parts: list[Literal["all", "encoder", "decoder"]] | None = None
    """Where ReLU replaces GDN: a row of its own for each part that is given. By default `all`."""
    epochs: int = 0
    """Passes over the train shards to fine-tune each swapped codec. GDN is then trained on in the same way, in a row of
    its own. 0: calibration alone. With --teachers, the names of the files end with the --lambda_bpp of their training,
    as teacher-0.0023.pt does."""
    lr: float | None = None
    """Peak --lr of the fine-tuning, with SOAP. By default 5e-4 with --quality and 2e-3 with --teachers: the larger the
    codec, the lower it must be."""
    rdoq: Rdoq = "off"
    """Add a row for ReLU with rate-distortion optimized quantization."""
    work: Path = ROOT / "checkpoints" / "zoo"
    """Folder for checkpoints, exports and evaluations."""
    out: Path = ROOT / "checkpoints" / "zoo" / "results"
    """Folder of the results, of table.md and of rates.png."""

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InputError(f"--epochs {self.epochs}: must be 0 or more")
        if self.lr is not None and not (self.epochs and self.lr > 0):
            raise InputError(f"--lr {self.lr}: must be over 0, and goes with --epochs")
        if (self.quality is None) == (self.teachers is None):
            found = "neither is" if self.quality is None else "both are"
            raise InputError(f"--quality, --teachers: give one of the two, {found} given")
        _ = self.qualities

    @property
    def qualities(self) -> list[int]:
        """--quality as numbers, rising, each once."""
        found: set[int] = set()
        for text in self.quality or []:
            matched = _QUALITIES.fullmatch(text)
            numbers = range(int(matched[1]), int(matched[2] or matched[1]) + 1) if matched else range(0)
            if not numbers:
                raise InputError(
                    f"--quality {text}: expected numbers from 1 to 8, such as 1 2 3, or a range such as 1..8"
                )
            found.update(numbers)
        return sorted(found)

    @property
    def peak_lr(self) -> str:
        """The --lr of the fine-tuning."""
        if self.lr is not None:
            return f"{self.lr:g}"
        return "2e-3" if self.teachers else "5e-4"

    @property
    def rows(self) -> list[Row]:
        """The rows of each rate."""
        trained = [_TRAINED] if self.epochs else []
        swapped = [row for row in _RELU if _SWAPPED[row.kind] in (self.replace_parts or ["all"])]
        rdoq = f"--rdoq {self.rdoq}"
        moved = [row._replace(title=f"{row.title} and RDOQ", coding="rdoq", flags=rdoq) for row in swapped]
        return [*_ANCHORS, *trained, *swapped, *([] if self.rdoq == "off" else moved)]


class Teacher(NamedTuple):
    """A GDN codec."""

    name: str
    pretrained: str
    """The flags with which train/main.py loads it."""
    rate: str
    """--lambda_bpp for its fine-tuning; empty if not known."""


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Finish every run that is not finished. After each run, write the table; print it at the end."""
    config = parse(ZooConfig, argv, prog=PROG)
    with before_work():
        check_places(config.shards, config.images, work=config.work, out=config.out)
        plan = read_zoo_plan(config)
    places = {"SHARDS": config.shards, "IMAGES": config.images, "WORK": config.work}
    if config.teachers:
        places["TEACHERS"] = config.teachers

    from studies.zoo_figure import draw_rates

    text = ""
    for results in Study(config.out, places).finish_all(plan):
        text = zoo_table(results, config.rows)
        with atomic_write(config.out / "table.md", "w") as file:
            file.write(text)
        draw_rates(zoo_curves(results, config.rows), config.out / "rates.png")
    print(f"\n{text}\nwritten: {config.out / 'table.md'}, {config.out / 'rates.png'}")
    return 0


def read_zoo_plan(config: ZooConfig) -> list[PlannedRun]:
    """For each codec a run of GDN and those of ReLU; at the end those of GDN with ReLU's training.

    Raises InputError for --teachers that cannot be used.
    """
    teachers = _teachers(config)
    if config.epochs and (unknown := [teacher.name for teacher in teachers if not teacher.rate]):
        raise InputError(
            f"--teachers {unknown[0]}: its name does not end with its lambda_bpp, which --epochs needs; "
            "rename it as teacher-0.0023.pt, or give --epochs 0"
        )
    kinds = dict.fromkeys(row.kind for row in config.rows)
    pairs = [(teacher, kind) for teacher in teachers for kind in kinds if kind != _TRAINED.kind]
    pairs += [(teacher, _TRAINED.kind) for teacher in teachers if config.epochs]
    return [_run(config, teacher, kind) for teacher, kind in pairs]


def _run(config: ZooConfig, teacher: Teacher, kind: str) -> PlannedRun:
    name = f"{kind}-{teacher.name}"
    tune = _TUNE.format(rate=teacher.rate, lr=config.peak_lr, epochs=config.epochs) if config.epochs else _UNTRAINED
    evaluate = {
        f"{title}-{row.coding}": " ".join(filter(None, (_EVALUATE.format(name=name), images, row.flags)))
        for title, images in _SETS.items()
        for row in config.rows
        if row.kind == kind
    }
    train = _TRAIN[kind].format(pretrained=teacher.pretrained, tune=tune)
    export = f"--ckpt WORK/{name}/last.pt --part all" if kind in _SWAPPED else ""
    return PlannedRun(Run(name, evaluate, train, {"kind": kind, "teacher": teacher.name}, export))


def _teachers(config: ZooConfig) -> list[Teacher]:
    if config.teachers is None:
        return [
            Teacher(f"q{each}", f"--pretrained zoo --quality {each}", f"{255**-2 / _LAMBDAS[each - 1]:.3g}")
            for each in config.qualities
        ]
    if not config.teachers.is_dir():
        raise InputError(f"--teachers {config.teachers}: no such folder")
    names = sorted(path.name for path in config.teachers.iterdir() if path.is_file())
    if not names:
        raise InputError(f"--teachers {config.teachers}: holds no file")
    if wrong := [name for name in names if not re.fullmatch(r"[\w.-]+", name)]:
        raise InputError(f"--teachers {wrong[0]!r}: rename the file; use letters, digits, dots and hyphens")
    rates = [_LAMBDA_OF_NAME.search(name) for name in names]
    return [
        Teacher(name, f"--pretrained TEACHERS/{name}", rate[1] if rate else "")
        for name, rate in zip(names, rates, strict=True)
    ]


def zoo_table(results: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """Markdown: PSNR and real rate of each codec, and the BD-rates of each row to those of GDN, where they exist."""
    teachers, anchors = _teachers_of(results), [row for row in rows if row.kind not in _SWAPPED]
    codecs = [["codec", "coded as", *(f"{column}, {title}" for title in _SETS for column in ("PSNR dB", "bpp"))]]
    rates = [["all rates", *(f"BD-rate to {anchor.title}, {title}" for title in _SETS for anchor in anchors)]]
    for teacher in teachers:
        for row in rows:
            points = [_points(results, [teacher], row, title) for title in _SETS]
            if all(points):
                cells = [cell for (point,) in points for cell in (f"{point[1]:.2f}", f"{point[0]:.3f}")]
                codecs.append([teacher, row.title, *cells])
    for row in rows:
        if row == _PLAIN:
            continue
        cells = []
        for title in _SETS:
            for anchor in anchors:
                found = bd_rate(*(_points(results, teachers, each, title) for each in (anchor, row)))
                cells.append(f"{found.percent:+.1f} %" if found and anchor != row else "")
        if any(cells):
            rates.append([row.title, *cells])
    tables = [markdown_table(codecs, left=2), *([markdown_table(rates)] if len(rates) > 1 else [])]
    return "\n\n".join(tables) + "\n"


def zoo_curves(
    results: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Title of a set of images -> title of a row -> its finished codecs as (real bpp, PSNR in dB)."""
    return {
        title: {row.title: points for row in rows if (points := _points(results, _teachers_of(results), row, title))}
        for title in _SETS
    }


def _teachers_of(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["settings"]["teacher"] for result in results.values()))


def _points(
    results: Mapping[str, Mapping[str, Any]], teachers: Sequence[str], row: Row, title: str
) -> list[tuple[float, float]]:
    """Real bpp and PSNR of the finished codecs of a row."""
    found = [results[name] for each in teachers if (name := f"{row.kind}-{each}") in results]
    figures = [result["evaluations"][f"{title}-{row.coding}"]["figures"][0] for result in found]
    return [(each["bpp_real"], each["psnr_db"]) for each in figures]


if __name__ == "__main__":
    sys.exit(main())
