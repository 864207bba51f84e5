"""Tables of text: for the screen, and as Markdown. Cells are printed as they are."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Rows = Sequence[Sequence[str]]


def in_columns(rows: Rows, left: int = 1) -> str:
    """Rows for the screen. The first `left` columns are aligned to the left, the others to the right."""
    return tabulate(rows, tablefmt="plain", **_options(rows, left))


def markdown_table(rows: Rows, left: int = 1) -> str:
    """The same as Markdown. The first row holds the headings."""
    return tabulate(rows[1:], headers=rows[0], tablefmt="pipe", **_options(rows, left))


def _options(rows: Rows, left: int) -> dict[str, Any]:
    aligned = ["left" if place < left else "right" for place in range(len(rows[0]))]
    return {"colalign": aligned, "disable_numparse": True, "preserve_whitespace": True}
