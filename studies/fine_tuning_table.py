"""The table of `studies/fine_tuning.py` from its results alone, whichever there are."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

ORIGINAL = "original"
"""Name of the run that evaluates the embedded codec as it is."""
TITLE = "val"
"""Title of the evaluation on the val crops."""
_PARTS = ("encoder", "decoder", "all")
_SCOPES = ("replaced", "replaced+hyper", "all")

_INTRODUCTION = """\
# What fine-tuning brings back

The embedded codec with ReLU in GDN's place in the encoder, the decoder or both, its weights kept as they are
(`--swap_init naive`), then fine-tuned on {images}: each trained scope, with and without the rate in the loss,
otherwise alike. PSNR and MS-SSIM are those of 8-bit pixels, rates those of real bitstreams, means over the val crops.
This page is made by the command at its end from the JSON of each run, which holds the exact commands and versions.
"""
_HEADINGS = ("ReLU in", "trained", "loss", "PSNR dB before", "after", "MS-SSIM before", "after", "bpp before", "after")
_NOTE = """
Under the `recon` loss the entropy bottleneck is frozen, since no rate reaches it: `replaced+hyper` is then the run of
`replaced`. `replaced` with `rd` trains the transforms against an entropy model that stays as it was. Where both sides
are replaced, `all` trains what `replaced+hyper` trains; and with ReLU in the decoder alone, `replaced` trains nothing
that the rate depends on. Such rows are the same training made twice, and have to be equal.
"""
_COMMANDS = """
## How it was made

    python studies/fine_tuning.py --shards SHARDS

started again, it skips what is finished. One of its runs, in full (WORK: `--work`):

    {train}
    {evaluate}
"""


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of `results`, run name -> JSON content; runs that are missing leave their cells empty."""
    rows = [_row(results, part, scope, loss) for part in _PARTS for loss in ("rd", "recon") for scope in _SCOPES]
    tuned = [result for result in results.values() if "loss" in result["settings"]]
    counts = sorted({result["settings"]["images"] for result in tuned})
    text = _INTRODUCTION.format(images=f"{' or '.join(f'{count:,}' for count in counts)} crops".lstrip())
    if original := _figures(results, ORIGINAL):
        text += (
            f"\nThe original, with GDN: {original['psnr_db']:.2f} dB, MS-SSIM {original['ms_ssim']:.4f}, "
            f"{original['bpp_real']:.3f} bpp, on {original['num_images']} crops.\n"
        )
    text += "\n" + "\n".join([_line(_HEADINGS), _line(["---"] * len(_HEADINGS)), *map(_line, rows)]) + "\n" + _NOTE
    text += _best(results)
    if tuned:
        example = next((result for result in tuned if result["settings"]["loss"] == "rd"), tuned[0])
        evaluate = example["evaluations"][TITLE]["command"]
        text += _COMMANDS.format(train=_wrap(example["train"]), evaluate=_wrap(evaluate))
    return text


def run_name(part: str, scope: str, loss: str) -> str:
    """The run that a row shows: under recon `replaced+hyper` trains what `replaced` does."""
    return f"{part}-{'replaced' if loss == 'recon' and scope == 'replaced+hyper' else scope}-{loss}"


def _row(results: Mapping[str, Mapping[str, Any]], part: str, scope: str, loss: str) -> list[str]:
    before = _figures(results, f"{part}-untrained")
    after = _figures(results, run_name(part, scope, loss))
    cells = [part, scope, loss]
    for name, digits in (("psnr_db", 2), ("ms_ssim", 4), ("bpp_real", 3)):
        cells += [f"{figures[name]:.{digits}f}" if figures else "" for figures in (before, after)]
    return cells


def _best(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each part: of its runs at a rate of at most 1.1 times the original's, the one of the highest PSNR."""
    original = _figures(results, ORIGINAL)
    if not original:
        return ""
    lines = []
    for part in _PARTS:
        named = {run_name(part, scope, loss): f"`{scope}`, `{loss}`" for scope in _SCOPES for loss in ("recon", "rd")}
        found = {name: figures for name in named if (figures := _figures(results, name))}
        near = {name: f for name, f in found.items() if f["bpp_real"] <= 1.1 * original["bpp_real"]}
        if near:
            name = max(near, key=lambda name: near[name]["psnr_db"])
            change = near[name]["psnr_db"] - original["psnr_db"]
            rate = near[name]["bpp_real"] / original["bpp_real"] - 1
            lines.append(f"- {part}: {named[name]}, {change:+.2f} dB at {rate:+.1%} of the rate")
    if not lines:
        return ""
    return (
        "\nHighest PSNR at a rate at most 10 % over the original's, beside the original:\n\n" + "\n".join(lines) + "\n"
    )


def _figures(results: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return results[name]["evaluations"][TITLE]["figures"][0] if name in results else None


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _wrap(command: str) -> str:
    """A shell command over several lines, indented as Markdown's code is, each flag beside its value."""
    bound = re.sub(r" (?!--)", "\0", command)
    lines = textwrap.wrap(bound, 108, break_on_hyphens=False, break_long_words=False)
    return " \\\n        ".join(lines).replace("\0", " ")
