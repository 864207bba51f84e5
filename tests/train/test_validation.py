"""The reconstructions that a run writes."""

from pathlib import Path

from tests.train.runs import Run


def test_pictures_of_a_run_that_made_more_are_removed(run: Run, tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--recon_every", "1")
    assert run(*flags, "--recon_count", "4") == 0
    assert run(*flags, "--recon_count", "2", "--overwrite") == 0
    for folder in ("origin", "pre_e000", "e001"):
        assert sorted(path.name for path in (tmp_path / "recon" / folder).iterdir()) == ["000.png", "001.png"]
