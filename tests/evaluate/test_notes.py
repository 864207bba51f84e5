"""The notes below the table of an evaluation."""

from types import SimpleNamespace
from typing import Any

import pytest

from evaluate.report import _notes
from relic.bitstream.rdoq import RdoqSettings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (RdoqSettings(), []),
        (RdoqSettings("full"), ["symbols moved by --rdoq full"]),
        (RdoqSettings("fast", 0.002), ["symbols moved by --rdoq fast --rdoq_lmbda 0.002"]),
    ],
)
def test_moved_symbols_are_noted_and_one_image_is_in_the_singular(settings: RdoqSettings, said: list[str]) -> None:
    codec = SimpleNamespace(label="a", qat=False, precision="float32")
    evaluation: Any = SimpleNamespace(codec=codec, rdoq=settings)
    summary: Any = SimpleNamespace(num_without_ms_ssim=1, num_exact=2)
    first, *moved, last = _notes([evaluation], [summary])
    assert first == "1 image without MS-SSIM: a side is under 161 pixels"
    assert moved == said
    assert last == "a: 2 exact reconstructions, left out of the means in dB"
