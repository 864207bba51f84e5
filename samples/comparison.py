"""Draw one PNG that compares codecs on several images, with the names and figures of the codecs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

_SIDE = 224
_LEFT = 84
"""Width in pixels of the names of the rows, left of the images."""
_TOP = 56
"""Height in pixels of the names and figures of the columns, above the images."""
_GAP = 4
_FONT_SIZE = 17
_LETTERS = 25
"""Number of letters that fit above an image."""


class Column(NamedTuple):
    """The reconstructions of one codec."""

    folder: Path
    """Folder of the PNGs, named after the rows."""
    name: str
    figures: str = ""
    """Text for the line below the name."""


def draw_comparison(columns: Sequence[Column], rows: Sequence[str], target: Path) -> None:
    """Write a PNG with one row per image and one column per codec. A row has the name of its file, without `.png`."""
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
            with Image.open(column.folder / f"{row}.png") as image:
                sheet.paste(image.convert("RGB"), (_LEFT + place * step, top))
    sheet.save(target)
