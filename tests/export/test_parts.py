"""The torch modules of an export: other exporters than ONNX's can start from them."""

from typing import get_args

import numpy as np
import pytest
import torch

from export.parts import Part, build_part
from relic.options import Upsample
from tests.export.conftest import tiny_codec

CASES: list[tuple[Part, Upsample]] = [
    ("encoder", "deconv5"),
    *(("decoder", upsample) for upsample in get_args(Upsample)),
    *(("full", upsample) for upsample in get_args(Upsample)),
]


@pytest.mark.parametrize(("part", "upsample"), CASES)
def test_torch_export_takes_every_part(part: Part, upsample: Upsample) -> None:
    """ExecuTorch and Core ML start from such a program. Both refuse integer limits of a Hardtanh."""
    module = build_part(part, tiny_codec("all").build(), upsample)
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(1, 12, 4, 5, generator=generator) * 6 if part == "decoder" else torch.rand(1, 3, 64, 80)
    program = torch.export.export(module, (values,))
    with torch.inference_mode():
        expected, found = module(values).numpy(), program.module()(values).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    limits = [node.args[1:] for node in program.graph.nodes if node.target is torch.ops.aten.hardtanh.default]
    assert limits == ([] if part == "encoder" else [(0.0, 1.0)])
    assert all(isinstance(limit, float) for pair in limits for limit in pair)
