"""Fill the tables of docs/calibration.md. The numbers come from the results, the form from `*.md.j2`."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from relic.errors import InputError
from studies.calibration_results import (
    EVALUATIONS,
    PARTS,
    TUNED,
    Results,
    comparisons,
)

_TABLES = "calibration_tables.md.j2"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def fill(page: str, results: Results) -> str:
    """Replace each table of `page`, between `<!-- table: NAME -->` and `<!-- end of table -->`.

    Rows that need a missing run are left out. Raises InputError for the name of a table that does not exist.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tables = environment.get_template(_TABLES).make_module(_values(results))

    def table(marked: re.Match[str]) -> str:
        make = getattr(tables, marked[2], None)
        if make is None:
            raise InputError(f"<!-- table: {marked[2]} -->: studies/{_TABLES} has no such table")
        return f"{marked[1]}{make()}{marked[3]}"

    return _MARKED.sub(table, page)


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
