"""The page of `studies/calibration.py` from its results alone, whichever there are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import bjontegaard

Results = Mapping[str, Mapping[str, Any]]
"""Run name -> content of its JSON."""
KINDS = {
    "gdn": "GDN",
    "naive": "naive, fine-tuned",
    "untrained": "calibrated, no training",
    "calibrated": "calibrated, fine-tuned",
    "preconditioned": "calibrated, fine-tuned with preconditioning",
    "distilled": "calibrated, fine-tuned with distillation",
}
EVALUATIONS = {"val": "val crops", "kodak": "pictures of --images"}
TUNED = ("naive", "calibrated", "preconditioned", "distilled")
"""Kinds that are trained, each with a curve."""
OTHER_NAIVE = ("all-naive-faster", "all-naive-preconditioned", "all-naive-longer")
"""Runs of the naive swap that were given better conditions than the calibrated ones."""
_PARTS = ("encoder", "decoder", "all")

_INTRODUCTION = """\
# What a calibrated swap is worth

GDN is replaced by ReLU in the embedded codec's encoder, decoder or both, either naively (the weights stay as they are)
or calibrated (`--swap_init calibrated`, the default: the weights around each ReLU are refitted to the GDN codec on 64
train crops, in seconds and without training), and then fine-tuned. This page and its figures are made by the command at
its end from the JSON of each run, which holds the exact commands and versions. PSNR and MS-SSIM are those of 8-bit
pixels, rates those of real bitstreams.
"""
_LIMITS = """\
## What it is not

ReLU at k standard deviations clips next to nothing, so a calibrated codec is nearly linear; the column *ReLU clips*
says how little fine-tuning of this length changes that, however it is done: what training gains it gains as a linear
codec. Preconditioning gains the most, on the pictures of --images less than on the val crops, and nothing for a naive
start, whose inputs soon are no longer those that were measured. Distillation steadies the first steps of plain training
and ends no higher than without. Where GDN's nonlinearity counts most, in a decoder that is
swapped alone, the gap that is left is the widest. At the borders the lifted signal meets zeros, which no weights make
up for: small pictures lose more than large ones. The fit is made of train crops as the GDN codec sees them, so it
inherits that codec's rate.

Tried and left out, since the error on held-back crops did not fall: a k for each channel (by the gradient of the
fitted error), targets behind GDN in place of those before it, targets from latents that were not rounded, one channel
lifted so far that it marks the border. A gain for each channel is taken up by the next layer's fit. k = 2, which
clips ten times as much, starts 2.7 dB lower and is still lower after 2,000 images.
"""
_COMMANDS = """\
## How it was made

    python studies/calibration.py --shards SHARDS --images IMAGES

started again, it skips what is finished. One of its runs (WORK: `--work`):

    {train}
"""


def kind_of(result: Mapping[str, Any]) -> str:
    """The key of KINDS that a run belongs to, or `start` for a naive swap that was not trained."""
    settings = result["settings"]
    if settings["init"] == "gdn":
        return "gdn"
    if settings["images"] == 0:
        return "untrained" if settings["init"] == "calibrated" else "start"
    if settings["distill"] != "0":
        return "distilled"
    if settings.get("precondition") and settings["init"] == "calibrated":
        return "preconditioned"
    return str(settings["init"])


def curve(results: Results, part: str, kind: str) -> Sequence[Mapping[str, Any]]:
    """Validations of the run of that part and kind at the embedded codec's rate; empty where it is not finished."""
    return results[f"{part}-{kind}"].get("validations", []) if f"{part}-{kind}" in results else []


def rate_points(results: Results, kind: str, title: str) -> dict[str, tuple[float, float]]:
    """lambda_bpp -> (real bpp, PSNR) of GDN codecs or of those swapped on both sides."""
    found = {}
    for name, result in results.items():
        settings = result["settings"]
        both = settings.get("part", "all") == "all" and name not in OTHER_NAIVE
        if both and kind_of(result) == kind:
            figures = result["evaluations"][title]["figures"][0]
            found[settings["rate"]] = figures["bpp_real"], figures["psnr_db"]
    return found


def bd_rate(results: Results, kind: str, title: str) -> float | None:
    """Bjontegaard's difference in rate against the GDN codecs, per cent; None with fewer than four rates.

    Not a number where the two curves have no PSNR in common.
    """
    anchor, test = (rate_points(results, each, title) for each in ("gdn", kind))
    common = sorted(anchor.keys() & test.keys())
    if len(common) < 4:
        return None
    ordered = [sorted(points[rate] for rate in common) for points in (anchor, test)]
    columns = [column for points in ordered for column in zip(*points, strict=True)]
    (_, highest), (_, lowest) = ordered[1][-1], ordered[0][0]
    if highest < lowest:
        return math.nan
    return float(bjontegaard.bd_rate(*columns, method="akima", min_overlap=0))


def render(results: Results, figures: Sequence[str]) -> str:
    """Markdown; what needs a run that is missing is left out. `figures`: paths of the pictures beside the page."""
    sections = [
        _INTRODUCTION,
        _table_of_starts(results),
        _table_of_ends(results),
        _worth(results),
        _table_of_rates(results),
        "\n".join(f"![{path.rsplit('/', 1)[-1].removesuffix('.png')}]({path})\n" for path in figures),
        _LIMITS,
        _commands(results),
    ]
    return "\n".join(section for section in sections if section)


def _table_of_starts(results: Results) -> str:
    rows = [_row("GDN", "", results.get("original"))]
    for part in _PARTS:
        rows += [_row(part, init, results.get(f"{part}-{init}-untrained")) for init in ("naive", "calibrated")]
    return _section("Without any training", ("ReLU in", "swap"), rows)


def _table_of_ends(results: Results) -> str:
    rows = []
    for part in _PARTS:
        for kind in TUNED:
            rows.append(_row(part, KINDS[kind], results.get(f"{part}-{kind}")))
    for name in OTHER_NAIVE:
        if result := results.get(name):
            rows.append(_row("all", _conditions(result), result))
    tuned = [results[name] for part in _PARTS if (name := f"{part}-calibrated") in results]
    counts = sorted({result["settings"]["images"] for result in tuned})
    images = " or ".join(f"{count:,}" for count in counts)
    return _section(f"After fine-tuning on {images} images", ("ReLU in", "start"), rows) if counts else ""


def _conditions(result: Mapping[str, Any]) -> str:
    """Of a run in OTHER_NAIVE."""
    settings = result["settings"]
    how = ", preconditioned" if settings.get("precondition") else ""
    return f"naive, {settings['images']:,} images at a learning rate of {settings['lr']}{how}"


def _row(first: str, second: str, result: Mapping[str, Any] | None) -> list[str] | None:
    if result is None:
        return None
    cells = [first, second]
    for title in EVALUATIONS:
        figures = result["evaluations"][title]["figures"][0]
        cells += [f"{figures['psnr_db']:.2f}", f"{figures['ms_ssim']:.4f}", f"{figures['bpp_real']:.3f}"]
    clipped = result["evaluations"]["val"]["figures"][0]["relu_clipped"]
    return [*cells, "" if clipped is None else f"{clipped:.1%}"]


def _section(title: str, headings: Iterable[str], rows: Sequence[list[str] | None]) -> str:
    present = [row for row in rows if row is not None]
    if not present:
        return ""
    columns = [*headings]
    for name in EVALUATIONS.values():
        columns += [f"PSNR dB, {name}", "MS-SSIM", "bpp"]
    columns.append("ReLU clips")
    return "\n".join([f"## {title}\n", _line(columns), _line(["---"] * len(columns)), *map(_line, present)]) + "\n"


def _worth(results: Results) -> str:
    """What the curves say, in words."""
    lines = []
    for part in _PARTS:
        naive = curve(results, part, "naive")
        for kind in TUNED[1:]:
            if tuned := curve(results, part, kind):
                lines += _compared(part, KINDS[kind], naive, tuned)
    start = curve(results, "all", "calibrated")
    for name in OTHER_NAIVE:
        if start and name in results:
            reached = _reached(results[name]["validations"], start[0])
            lines.append(f"- all, {_conditions(results[name])}: {reached}")
    if not lines:
        return ""
    about = (
        "Better means a lower loss on the val crops, the one trained with (mean squared error + lambda x bpp): a "
        "better picture at a higher rate does not pass for a gain.\n"
    )
    return "\n".join(["## What the curves say\n", about, *lines]) + "\n"


def _compared(
    part: str, label: str, naive: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]
) -> list[str]:
    change = tuned[-1]["psnr_db"] - tuned[0]["psnr_db"], tuned[-1]["bpp"] / tuned[0]["bpp"] - 1
    helped = "lowers" if tuned[-1]["loss"] < tuned[0]["loss"] else "does not lower"
    about = f"({change[0]:+.2f} dB at {change[1]:+.1%} of the rate)"
    lines = [f"- {part}, {label}: training {helped} the loss of the start {about}"]
    lowest = min(tuned, key=lambda point: point["psnr_db"])
    if lowest["psnr_db"] < tuned[0]["psnr_db"] - 0.1:
        lines.append(f"  - on the way it falls to {lowest['psnr_db']:.2f} dB, at {lowest['images_seen']:,} images")
    theirs = {point["images_seen"]: point for point in naive}
    both = [(point, theirs[point["images_seen"]]) for point in tuned if point["images_seen"] in theirs]
    if both:
        better = sum(mine["loss"] < other["loss"] for mine, other in both)
        last = both[-1][0]["psnr_db"] - both[-1][1]["psnr_db"]
        lines.append(f"  - better than naive at {better} of {len(both)} points; at the last by {last:.2f} dB")
        lines.append(f"  - naive at a learning rate of 1e-4: {_reached(naive, tuned[0])}")
    return lines


def _reached(naive: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> str:
    found = next((point["images_seen"] for point in naive if point["loss"] <= start["loss"]), None)
    if found is None:
        best = max(point["psnr_db"] for point in naive)
        return f"never as good as the calibrated start (its best: {best:.2f} dB, the start: {start['psnr_db']:.2f} dB)"
    return f"as good as the calibrated start after {found:,} images"


def _table_of_rates(results: Results) -> str:
    rows = []
    for kind in ("untrained", *TUNED):
        rates = [bd_rate(results, kind, title) for title in EVALUATIONS]
        if any(rate is not None for rate in rates):
            rows.append([KINDS[kind], *map(_per_cent, rates)])
    if not rows:
        return ""
    head = ["both sides swapped", *(f"BD-rate, {name}" for name in EVALUATIONS.values())]
    about = (
        "Rate for the same PSNR against the GDN codecs, over the PSNR that both reach; four rates, Akima "
        "interpolation; less is better.\n"
    )
    return "\n".join(["## Four rates\n", about, _line(head), _line(["---"] * len(head)), *map(_line, rows)]) + "\n"


def _per_cent(rate: float | None) -> str:
    if rate is None:
        return ""
    return "no PSNR in common" if math.isnan(rate) else f"{rate:+.1f} %"


def _commands(results: Results) -> str:
    tuned = (result for result in results.values() if result["train"] and result["settings"]["images"])
    example = next((result["train"] for result in tuned), None)
    if example is None:
        return ""
    wrapped = example.replace(" --", " \\\n        --")
    return _COMMANDS.format(train=wrapped)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
