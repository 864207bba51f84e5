"""One picture of what codecs make of some images, with the names and figures written into it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

_SIDE = 224
_LEFT = 84
"""Pixels left of the images, for the names of the rows."""
_TOP = 56
"""Pixels above the images, for the names of the columns and their figures."""
_GAP = 4
_FONT_SIZE = 17
_LETTERS = 25
"""As many fit above an image."""


class Column(NamedTuple):
    """What a codec makes of every image."""

    folder: Path
    """Of the PNGs, by the names of the rows."""
    name: str
    figures: str = ""
    """A second line below the name."""


def draw_comparison(columns: Sequence[Column], rows: Sequence[str], target: Path) -> None:
    """Write a PNG: a row per image, named after its file without `.png`, and a column per codec."""
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (_LEFT + step * len(columns), _TOP + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    # Pillow without FreeType has one small font.
    font = ImageFont.load_default(_FONT_SIZE if features.check("freetype2") else None)
    for number, column in enumerate(columns):
        left = _LEFT + number * step
        lines = textwrap.wrap(column.name, _LETTERS, break_on_hyphens=False)
        text = "\n".join([*lines, column.figures] if column.figures else lines)
        draw.multiline_text((left + _SIDE / 2, _TOP - 8), text, "black", font, anchor="md", align="center")
    for number, row in enumerate(rows):
        top = _TOP + number * step
        draw.multiline_text((_LEFT / 2, top + _SIDE / 2), f"image\n{row}", "black", font, anchor="mm", align="center")
        for place, column in enumerate(columns):
            with Image.open(column.folder / f"{row}.png") as picture:
                sheet.paste(picture.convert("RGB"), (_LEFT + place * step, top))
    sheet.save(target)
