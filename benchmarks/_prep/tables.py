"""The runs and loops of the packing benchmark, their ratios, and the results as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks._prep.loops import (
    PrepareImage,
    bare_jpg,
    bare_png,
    bare_raw,
    decode_alone,
    decode_eighth,
    decode_half,
    pillow_jpg,
)
from benchmarks._prep.runs import PackVariant
from benchmarks._shared.ratios import ratio_table
from relic.columns import in_columns
from relic.machine import available_cores
from relic.options import Encoding

RATIOS = (
    ("jpg_exact", "bare_jpg"),
    ("raw_exact", "bare_raw"),
    ("png_exact", "bare_png"),
    ("jpg_fast", "jpg_exact"),
    ("raw_fast", "raw_exact"),
    ("decode_eighth", "decode_alone"),
    ("jpg_exact", "jpg_exact_1_worker"),
    ("raw_exact", "raw_exact_1_worker"),
    ("jpg_exact", "pillow_1_process"),
)
_ENCODINGS: tuple[Encoding, ...] = ("jpg", "raw", "png")


class NamedVariant(NamedTuple):
    """A run of the command."""

    name: str
    variant: PackVariant


class Loop(NamedTuple):
    """A loop, its number of processes, and the share of the images per process."""

    name: str
    step: PrepareImage
    processes: int
    share: float


def all_variants() -> Iterator[NamedVariant]:
    """Every encoding, exact and fast, with one worker per core and with one worker."""
    for encoding in _ENCODINGS:
        for decode in ("exact", "fast"):
            for workers, suffix in ((available_cores(), ""), (1, "_1_worker")):
                name = f"{encoding}_{decode}{suffix}"
                yield NamedVariant(name, PackVariant(encoding, decode, workers))


def all_loops() -> list[Loop]:
    """The loops that the runs are compared with."""
    cores = available_cores()
    return [
        Loop("bare_jpg", bare_jpg, cores, 1),
        Loop("bare_raw", bare_raw, cores, 1),
        Loop("bare_png", bare_png, cores, 1),
        Loop("decode_alone", decode_alone, cores, 1),
        Loop("decode_half", decode_half, cores, 1),
        Loop("decode_eighth", decode_eighth, cores, 1),
        Loop("pillow_1_process", pillow_jpg, 1, 0.3),
    ]


def prep_ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Name, for example `jpg_exact/bare_jpg` -> ratio of two figures."""
    return {f"{ours}/{theirs}": figures[ours] / figures[theirs] for ours, theirs in RATIOS}


def prep_table(
    figures: Mapping[str, float],
    by_round: Mapping[str, Sequence[float]],
    quotients: Mapping[str, float],
    others: Mapping[str, float],
) -> str:
    """Images per second, in all and per round; the ratios; and the other figures."""
    rounds = max(map(len, by_round.values()))
    speeds = [("", "images/s", *(f"round {number}" for number in range(rounds)))]
    for name, figure in figures.items():
        speeds.append((name, f"{figure:,.0f}", *(f"{one:,.0f}" for one in by_round[name])))
    lines = [
        in_columns(speeds),
        "",
        ratio_table(quotients),
        "",
        f"start of a run: {others['start_seconds']:.2f} s (not in the images/s above)",
        f"{others['listed_files']:,} files: {others['seconds_to_first_shard']:.2f} s from command to first shard",
        f"largest process: {others['peak_mb']:.0f} MB",
        f"fast against exact: {others['fast_psnr_db']:.1f} dB PSNR, worst crop {others['fast_worst_psnr_db']:.1f} dB",
    ]
    return "\n".join(lines)
