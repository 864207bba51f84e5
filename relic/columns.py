"""Text for the screen: tables, also as Markdown, and counts. Cells are printed as they are."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

_Cells = Sequence[Sequence[str]]


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def in_columns(rows: _Cells, left: int = 1) -> str:
    """Rows for the screen. The first `left` columns are aligned to the left, the others to the right."""
    return tabulate(rows, tablefmt="plain", **_options(rows, left))


def markdown_table(rows: _Cells, left: int = 1) -> str:
    """The same as Markdown. The first row holds the headings."""
    return tabulate(rows[1:], headers=rows[0], tablefmt="pipe", **_options(rows, left))


def _options(rows: _Cells, left: int) -> dict[str, Any]:
    aligned = ["left" if place < left else "right" for place in range(len(rows[0]))]
    return {"colalign": aligned, "disable_numparse": True, "preserve_whitespace": True}
