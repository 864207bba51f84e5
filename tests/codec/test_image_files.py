"""Images of every size are coded to a file and decoded again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relic.bitstream.container import pack, read_stream, write_stream
from relic.bitstream.tables import dequantize
from relic.codec.coding import analyse, pad_to_stride, tables_of
from relic.codec.model import Architecture, build_model
from relic.codec.pixels import to_float


@pytest.fixture(scope="module")
def model() -> FactorizedPrior:
    torch.manual_seed(0)
    model = build_model(Architecture((4, 6), "all")).eval()
    with torch.no_grad():
        model.g_a[6].weight.mul_(20)
    model.update(force=True)
    return model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
@example(width=1, height=1, seed=0)
@example(width=300, height=300, seed=1)
@example(width=1, height=300, seed=2)
@example(width=16, height=17, seed=3)
def test_the_decoded_picture_is_the_model_s_own(
    model: FactorizedPrior, tmp_path: Path, width: int, height: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    x = to_float(torch.from_numpy(pixels))
    tables = tables_of(model)
    write_stream(tmp_path / "x.relic", pack(analyse(model, x)[0], width, height, tables))
    stream = read_stream(tmp_path / "x.relic", tables)
    assert (stream.width, stream.height) == (width, height)
    with torch.inference_mode():
        y_hat = torch.from_numpy(dequantize(stream.symbols, tables))[None]
        decoded = model.g_s(y_hat)[:, :, : stream.height, : stream.width]
        own = model(pad_to_stride(x))["x_hat"][:, :, :height, :width]
    assert decoded.shape == (1, 3, height, width) and torch.equal(decoded, own)
