"""CompressAI's EntropyBottleneck as the oracle for symbols, bytes and reconstructions."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relic.bitstream.coder import CompiledCoder, PythonCoder, decode_symbols, encode_symbols, load_coder
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables, dequantize, quantize

CODERS = [load_coder(), PythonCoder()]


@pytest.fixture(scope="module")
def bottleneck() -> Any:
    """The densities are random and narrower than the latents of these tests, so that escapes occur."""
    torch = pytest.importorskip("torch")
    entropy_models = pytest.importorskip("compressai.entropy_models")
    torch.manual_seed(0)
    model = entropy_models.EntropyBottleneck(12, init_scale=4).eval()
    with torch.no_grad():
        model.quantiles[:, 0, 1] = torch.linspace(-0.49, 0.49, 12)
    model.update(force=True)
    return model


@pytest.fixture(scope="module")
def tables(bottleneck: Any) -> Tables:
    return Tables(
        cdf=bottleneck.quantized_cdf.numpy(),
        cdf_length=bottleneck.cdf_length.numpy(),
        offset=bottleneck.offset.numpy(),
        medians=bottleneck.quantiles[:, 0, 1].detach().numpy(),
        stride=16,
    )


@pytest.fixture(scope="module")
def y(tables: Tables) -> NDArray[Any]:
    """(2, 12, 7, 9) float32. A quarter is exactly half-way between two symbols, if float32 allows it."""
    y = np.random.default_rng(0).normal(0, 3, (2, 12, 7, 9)).astype(np.float32)
    halves = np.floor(y) + np.float32(0.5) + tables.medians[:, None, None]
    return np.where(np.random.default_rng(1).random(y.shape) < 0.25, halves, y).astype(np.float32)


def test_symbols_are_compressais(bottleneck: Any, tables: Tables, y: NDArray[Any]) -> None:
    import torch

    medians = bottleneck.quantiles[:, :, 1:2].detach().reshape(1, -1, 1, 1)
    expected = bottleneck.quantize(torch.from_numpy(y), "symbols", medians)
    np.testing.assert_array_equal(quantize(y, tables), expected.numpy())
    y_hat = bottleneck.quantize(torch.from_numpy(y), "dequantize", medians)
    np.testing.assert_array_equal(dequantize(quantize(y, tables), tables), y_hat.numpy())


@pytest.mark.parametrize("coder", CODERS, ids=["installed", "python"])
def test_bytes_are_compressais(bottleneck: Any, tables: Tables, y: NDArray[Any], coder: Any) -> None:
    import torch

    expected = bottleneck.compress(torch.from_numpy(y))
    symbols = quantize(y, tables)
    values = symbols - tables.offset[:, None, None]
    assert (values < 0).any()
    assert (values >= tables.cdf_length[:, None, None] - 2).any()
    y_hat = bottleneck.decompress(expected, y.shape[2:]).numpy()
    for index, data in enumerate(expected):
        assert encode_symbols(symbols[index], tables, coder) == data
        decoded = decode_symbols(data, (12, 7, 9), tables, coder)
        np.testing.assert_array_equal(dequantize(decoded, tables), y_hat[index])
        assert len(data) == pytest.approx(code_length_bits(symbols[index], tables) / 8, rel=1e-3, abs=8)


def test_the_package_takes_the_coder_loaded_by_file(bottleneck: Any) -> None:
    """pybind11 aborts the process if the file is loaded again under another name."""
    from compressai.models.google import RansDecoder

    coder = load_coder()
    assert isinstance(coder, CompiledCoder)
    assert coder._ans.RansDecoder is RansDecoder
