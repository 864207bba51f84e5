"""One of two ranks fails alone, while the other waits for it: its line is printed and both end."""

from pathlib import Path

import pytest

from tests.train.failing_ranks import FAULTS, fail_alone, printed_alone


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("failing", "line"), FAULTS)
def test_the_line_is_printed_and_all_ranks_end(tmp_path: Path, failing: str, line: str) -> None:
    code, error = fail_alone(tmp_path, failing)
    assert code and printed_alone(error, line), error
    assert not any(tmp_path.glob("left-*"))
    assert "train/trainer.py" not in error  # no traceback of the other rank
