"""Tables of plain text."""

from collections.abc import Sequence


def in_columns(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Rows of text under each other; the first `left` columns begin, the others end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
