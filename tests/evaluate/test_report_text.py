"""The columns of the tables in text, and the notes below them."""

from types import SimpleNamespace
from typing import Any

import pytest

from evaluate.report import _notes
from evaluate.report_text import _relu_in
from relic.bitstream.rdoq import RdoqSettings


@pytest.mark.parametrize(
    ("replaced", "swap_init", "qat", "precision", "text"),
    [
        ("none", "none", False, "float32", "none"),
        ("all", "calibrated", False, "float32", "all (calibrated)"),
        ("all", "calibrated", True, "float32", "all (calibrated, QAT)"),
        ("encoder", "none", True, "int8", "encoder (QAT, INT8)"),
    ],
)
def test_a_codec_trained_for_int8_is_told_from_others(
    replaced: str, swap_init: str, qat: bool, precision: str, text: str
) -> None:
    architecture = SimpleNamespace(replaced=replaced)
    codec: Any = SimpleNamespace(architecture=architecture, swap_init=swap_init, qat=qat, precision=precision)
    assert _relu_in(codec) == text


@pytest.mark.parametrize(("qat", "precision", "told"), [(True, "float32", 1), (True, "int8", 0), (False, "float32", 0)])
def test_a_codec_of_qat_in_float_is_said_to_be_no_measure(qat: bool, precision: str, told: int) -> None:
    codec: Any = SimpleNamespace(label="one", qat=qat, precision=precision)
    summary: Any = SimpleNamespace(num_without_ms_ssim=0, num_exact=0)
    evaluation: Any = SimpleNamespace(codec=codec, rdoq=RdoqSettings())
    notes = _notes([evaluation], [summary])
    assert len(notes) == told and all(
        note.startswith("one: trained with --qat and evaluated in float") for note in notes
    )


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
