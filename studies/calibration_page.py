"""Fill the tables of docs/calibration.md. The numbers come from the results, the form from `*.md.j2`."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from studies.calibration_results import EVALUATIONS, PARTS, TUNED, Results, comparisons
from studies.pages import fill_tables

_TABLES = "calibration_tables.md.j2"
_NAMES = ("starts", "ends", "curves", "example")
"""The macros of the template that make tables."""


def fill(page: str, results: Results) -> str:
    """Fill the tables of `page`, see `fill_tables`. Rows that need a missing run are left out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    macros = environment.get_template(_TABLES).make_module(_values(results))
    return fill_tables(page, {name: getattr(macros, name) for name in _NAMES})


def _values(results: Results) -> dict[str, Any]:
    """The variables of the template."""
    tuned = [results[name] for part in PARTS if (name := f"{part}-calibrated") in results]
    trained = (each["train"] for each in results.values() if each["train"] and each["settings"]["images"])
    return {
        "results": results,
        "evaluations": EVALUATIONS,
        "parts": PARTS,
        "tuned": TUNED,
        "images": sorted({each["settings"]["images"] for each in tuned}),
        "comparisons": comparisons(results),
        "command": next(trained, ""),
    }
