from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samples.comparison import Column, draw_comparison


@pytest.fixture
def columns(tmp_path: Path) -> list[Column]:
    for number, name in enumerate(("origin", "gdn")):
        (tmp_path / name).mkdir()
        for row in ("000", "004"):
            Image.new("RGB", (224, 224), (200, 50 * number, int(row))).save(tmp_path / name / f"{row}.png")
    return [Column(tmp_path / "origin", "original"), Column(tmp_path / "gdn", "calibrated and fine-tuned", "26.57 dB")]


def test_every_image_stands_whole_in_its_row_and_column(columns: list[Column], tmp_path: Path) -> None:
    draw_comparison(columns, ("000", "004"), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    for number in (0, 1):
        for row in (0, 4):
            assert (pixels == (200, 50 * number, row)).all(axis=2).sum() == 224 * 224


def test_names_and_figures_are_written_beside_the_images(columns: list[Column], tmp_path: Path) -> None:
    draw_comparison(columns, ("000",), tmp_path / "named.png")
    draw_comparison([column._replace(name="", figures="") for column in columns], ("000",), tmp_path / "bare.png")
    named, bare = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("named.png", "bare.png"))
    assert named.shape == bare.shape
    changed = (named != bare).any(axis=1).nonzero()[0]
    assert len(changed) and changed.max() < 56  # above the images
    assert (bare[56:, :84] < 128).any()  # the rows' names
