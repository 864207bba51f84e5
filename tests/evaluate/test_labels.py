"""The label of a codec is the name of a folder inside --out, whatever its file is called."""

from pathlib import Path

import pytest

from evaluate.config import ORIGINALS
from evaluate.plan import REPORT_FILES, unique_labels

ODD = [
    "...pt", "....pt", "..pt", ". .pt", "report.html.pt", "rd.png.pt", "Metrics.json.pt", "summary.md.tmp.pt",
    "per_image.csv.pt", "a\nb.pt", "a\x1b[2J.pt", "\udce9.pt", "x" * 300 + ".pt", "ä" * 130 + ".pt", "a\\b.pt",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_label_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    (label,) = unique_labels([Path("/run") / name])
    folder = tmp_path / "out" / label
    assert folder.resolve().parent == (tmp_path / "out").resolve()
    assert label.isprintable() and label.lower() not in REPORT_FILES and label != ORIGINALS
    folder.mkdir(parents=True)


def test_labels_are_unique_whatever_the_names_are() -> None:
    paths = [Path(folder) / name for folder in ("/a", "/b", "/..") for name in ODD]
    labels = unique_labels(paths)
    assert len(set(labels)) == len(paths) and all("/" not in label and label.strip(". ") for label in labels)


def test_ordinary_names_are_labels_as_they_are() -> None:
    assert unique_labels([Path("/a/best_loss.pt"), Path("/a/ä b.pt"), Path("embedded")]) == [
        "best_loss",
        "ä b",
        "embedded",
    ]
    assert unique_labels([Path("/a/last.pt"), Path("/b/last.pt")]) == ["a-last", "b-last"]
    assert unique_labels([Path("/a/origin.pt")]) == ["a-origin"]
