"""What the benchmarks refuse before they measure."""

from collections.abc import Callable, Sequence

import pytest

from benchmarks import evaluate, export, loader, prep, train_step

MAINS = [loader.main, prep.main, train_step.main, evaluate.main, export.main]


@pytest.mark.parametrize("main", MAINS, ids=["loader", "prep", "train_step", "evaluate", "export"])
def test_a_file_in_no_folder_is_refused(
    main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "nowhere/x.json"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("error: --json nowhere/x.json: no folder nowhere\n") and error.count("\n") == 1


def test_a_missing_folder_of_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert prep.main(["--images", "nowhere"]) == 2
    assert capsys.readouterr().err.endswith("error: --images nowhere: no such folder\n")
