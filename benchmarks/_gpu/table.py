"""The figures as Markdown for the README: the card, its driver, torch, cuDNN and the precision are named."""

import re
from collections.abc import Mapping
from typing import Any

from relic.columns import markdown_table

_NAME = re.compile(r"(?P<what>.+), (?P<how>[^,]+), batch (?P<batch>\d+)")


def step_table(found: Mapping[str, Any]) -> str:
    """Images per second of the step sweep, one row per codec and precision, one column per batch size."""
    machine, sweep = found["machine"], found.get("steps", {})
    rates: dict[tuple[str, str], dict[int, str]] = {}
    for name, figures in sweep.items():
        named = _NAME.fullmatch(name)
        if named and isinstance(figures, Mapping):
            rate = figures.get("images_per_second")
            row = rates.setdefault((named["what"], named["how"]), {})
            row[int(named["batch"])] = "failed" if rate is None else f"{rate:,.0f}"
    batches = sorted({batch for row in rates.values() for batch in row})
    head = ["codec, what is trained", "precision", *(f"batch {batch}" for batch in batches)]
    rows = [[*key, *(row.get(batch, "") for batch in batches)] for key, row in rates.items()]
    card = machine.get("gpu", f"no GPU, {machine['cpu']}")
    parts = [card, *(f"{name} {machine[name]}" for name in ("driver", "torch", "cudnn") if name in machine)]
    return f"Images per second of one training step on {', '.join(parts)}:\n\n" + markdown_table([head, *rows], left=2)
