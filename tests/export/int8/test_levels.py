"""The INT8 files give the same numbers on every thread count and level of optimisation of onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from relic.arrays import Floats
from relic.bitstream.tables import dequantize, quantize
from relic.onnx.sessions import load_tables
from tests.export.int8.conftest import Crops, Export

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def outputs(path: Path, inputs: list[Floats], level: str, threads: int) -> Floats:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: one})[0] for one in inputs])


@pytest.mark.commands
@pytest.mark.parametrize(
    "flags",
    [
        ("--upsample", "deconv5"),
        ("--upsample", "deconv6"),
        ("--upsample", "subpixel"),
        ("--upsample", "subpixel-deconv2"),
        ("--upsample", "subpixel", "--calib_method", "learned", "--calib_lambda", "0.001"),
    ],
)
def test_every_level_and_thread_count_gives_the_same_bits(flags: tuple[str, ...], export: Export, crops: Crops) -> None:
    """The lower levels sum float32, the upper ones integers."""
    folder = export("all", *flags)
    tables = load_tables(folder)
    x = [np.ascontiguousarray(crop.transpose(2, 0, 1)[None] / np.float32(255)) for crop in crops.val]
    y = outputs(folder / "encoder.onnx", x, LEVELS[0], 1)
    y_hat = [dequantize(quantize(one, tables), tables)[None] for one in y]
    x_hat = outputs(folder / "decoder.onnx", y_hat, LEVELS[0], 1)
    for level in LEVELS:
        for threads in (1, 2, 3):
            assert np.array_equal(outputs(folder / "encoder.onnx", x, level, threads), y), (level, threads)
            assert np.array_equal(outputs(folder / "decoder.onnx", y_hat, level, threads), x_hat), (level, threads)
