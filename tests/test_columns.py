"""Tables keep the text of their cells: no number is read and printed anew."""

import pytest

from relic.columns import counted, in_columns, markdown_table

ROWS = [("", "PSNR dB", "n"), ("calibrated", "29.40", "007"), ("1e3", "-", "None")]


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    assert in_columns(ROWS).splitlines() == [
        "            PSNR dB     n",
        "calibrated    29.40   007",
        "1e3               -  None",
    ]
    assert in_columns([("a", "b c"), ("longer", "")], left=2).splitlines() == ["a       b c", "longer"]


def test_markdown_has_the_same_cells() -> None:
    lines = markdown_table(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [tuple(row) for row in (cells[0], *cells[2:])] == ROWS
    assert cells[1][0].startswith(":-") and cells[1][1].endswith("-:")


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (2000, "2,000 shards")])
def test_a_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert counted(number, "shard") == text
