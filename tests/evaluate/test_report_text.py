"""The columns of the tables in text."""

from types import SimpleNamespace
from typing import Any

import pytest

from evaluate.report_text import _relu_in


@pytest.mark.parametrize(
    ("replaced", "swap_init", "qat", "text"),
    [
        ("none", "none", False, "none"),
        ("all", "calibrated", False, "all (calibrated)"),
        ("all", "calibrated", True, "all (calibrated, QAT)"),
        ("encoder", "none", True, "encoder (QAT)"),
    ],
)
def test_a_codec_trained_for_int8_is_told_from_others(replaced: str, swap_init: str, qat: bool, text: str) -> None:
    codec: Any = SimpleNamespace(architecture=SimpleNamespace(replaced=replaced), swap_init=swap_init, qat=qat)
    assert _relu_in(codec) == text
