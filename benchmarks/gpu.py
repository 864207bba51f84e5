"""Measure the training step, the loop and the evaluation on a GPU: `python benchmarks/gpu.py --json FILE`."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if not __package__:  # run as a file: same import root as `python -m benchmarks.gpu`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._shared.flags import check_files, check_least
from relic.cli import parse
from relic.errors import before_work, command
from relic.files import check_folder, temporary_folder, write_json
from relic.options import Device

if TYPE_CHECKING:
    from benchmarks._gpu.measure import Bench, Sizes
    from benchmarks._gpu.sections import Section

PROG = "benchmarks/gpu.py"
SectionName = Literal["ceilings", "steps", "levers", "ms_ssim", "loop", "fine_tuning", "evaluation", "traces"]


@dataclasses.dataclass(frozen=True)
class GpuBenchmarkConfig:
    """Images per second of the training step and of the loop on one GPU, what limits them, and what precision costs.

    The sections take eight minutes at most, after packing. Each has a deadline of its own, and --json holds its figures
    as soon as they are measured. On a CPU everything is tiny: the figures mean nothing, but all sections run.
    """

    json: Path
    """JSON file to write the figures to. Traces are written beside it."""
    markdown: Path | None = None
    """File to write the table of steps to, as Markdown."""
    sections: list[SectionName] | None = None
    """What to measure. Default: everything."""
    deadline_factor: float = 1.0
    """Factor of all deadlines."""
    rounds: int | None = None
    """Timed steps per figure. Default: 60, on a CPU 1."""
    work_dir: Path | None = None
    """Folder for the packed crops, which are kept and used again. Default: a temporary folder."""
    device: Device = "auto"
    """Where to measure."""

    def __post_init__(self) -> None:
        check_least(self, {"deadline_factor": 0.01, **({"rounds": 1} if self.rounds is not None else {})})


class GpuPlan(NamedTuple):
    """The flags, after their files were checked."""

    config: GpuBenchmarkConfig
    sections: tuple[SectionName, ...]
    """What to measure, in this order."""


def make_plan(config: GpuBenchmarkConfig) -> GpuPlan:
    """Raises RefusedError for a file or a folder that cannot be written to. Needs no torch."""
    check_files(json=config.json, markdown=config.markdown)
    if config.work_dir is not None:
        with before_work():
            check_folder("--work_dir", config.work_dir)
    every: tuple[SectionName, ...] = get_args(SectionName)
    return GpuPlan(config, tuple(name for name in every if config.sections is None or name in config.sections))


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the figures to --json and the table to --markdown."""
    config = parse(GpuBenchmarkConfig, argv, prog=PROG)
    plan = make_plan(config)
    with temporary_folder() as temporary:
        found = _measure(plan, config.work_dir or temporary)
    from benchmarks._gpu.table import step_table

    table = step_table(found)
    print(table, flush=True)
    if config.markdown is not None:
        config.markdown.write_text(table + "\n")
    return 0


def _measure(plan: GpuPlan, folder: Path) -> dict[str, Any]:
    import torch

    from benchmarks._gpu.measure import Bench
    from benchmarks._gpu.sections import run_sections
    from benchmarks._shared.machine import machine
    from relic.distributed import join_world

    config = plan.config
    with join_world(config.device, PROG) as world:
        on_cuda = world.device.type == "cuda"
        if not on_cuda:
            torch.set_num_threads(1)  # a second thread makes tiny steps slower
        sizes = _sizes(on_cuda, config.rounds)
        _pack(folder, tiny=not on_cuda)
        found: dict[str, Any] = {"machine": machine(), "device": str(world.device), "sizes": sizes._asdict()}
        sections = _sections(plan, Bench(world, sizes, folder))
        run_sections(sections, found, lambda: write_json(config.json, found))
    return found


def _sizes(on_cuda: bool, rounds: int | None) -> "Sizes":
    from benchmarks._gpu.measure import Sizes

    if not on_cuda:
        return Sizes(
            channels={"tiny": "4,6"}, batches=(2,), warm_up=1, rounds=rounds or 1,
            product_side=64, copied_bytes=1 << 20, compile=False, loop_steps=2, threads=(1,),
            precisions=("fp32", "bf16"), tuned="--pretrained none --channels 4,6 --batch_size 8", seeds=1, epochs=1,
        )  # fmt: skip
    return Sizes(
        channels={"quality 1": "128,192", "quality 8": "192,320"}, batches=(16, 32, 64, 128, 256), warm_up=20,
        rounds=rounds or 60, product_side=8192, copied_bytes=4 << 30, compile=True, loop_steps=300,
        threads=(1, 2, 4, 16), precisions=("fp32", "bf16", "fp16", "tf32"),
        tuned="--pretrained embedded", seeds=2, epochs=4,
    )  # fmt: skip


def _sections(plan: GpuPlan, bench: "Bench") -> list["Section"]:
    from benchmarks._gpu import measure
    from benchmarks._gpu.levers import levers
    from benchmarks._gpu.sections import Section

    measured: dict[SectionName, tuple[float, Any]] = {
        "ceilings": (20, measure.ceilings),
        "steps": (170, measure.step_sweep),
        "levers": (60, levers),
        "ms_ssim": (15, measure.ms_ssim_layouts),
        "loop": (80, measure.loop),
        "fine_tuning": (80, measure.fine_tuning),
        "evaluation": (40, measure.evaluation),
        "traces": (20, functools.partial(measure.traces, folder=plan.config.json.parent)),
    }
    return [
        Section(name, plan.config.deadline_factor * measured[name][0], functools.partial(measured[name][1], bench))
        for name in plan.sections
    ]


def _pack(folder: Path, *, tiny: bool) -> None:
    """Pack 4,000 train crops and 400 val crops of sample photographs, as raw and as JPEG; fewer if `tiny`."""
    from benchmarks._shared.crops import pack_samples

    photographs, val, crops_per_image = (8, 2, 2) if tiny else (100, 10, 40)
    pack = f"--coco_dir {folder}/coco --crop random --crops_per_image {crops_per_image} --out_dir {folder}"
    pack_samples(
        f"--out {folder}/coco --train {photographs} --val {val}",
        f"{pack}/raw --encoding raw",
        f"{pack}/jpg --encoding jpg --include_val false",
    )


if __name__ == "__main__":
    sys.exit(main())
