"""A stream that one runtime wrote decodes in all others, to the symbols that were sent.

The tables are static, so that no runtime computes a probability. Runtimes round otherwise, and send other symbols.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.crops import evenly_spread, fit_to_size, read_crops
from export.tflite.conversion import to_tflite
from export.toolchains.environment import find_python
from export.toolchains.registry import TOOLCHAINS
from export.toolchains.running import run_script
from relic.arrays import Floats
from relic.bitstream.container import pack, unpack
from relic.bitstream.tables import dequantize, quantize
from relic.onnx.layout import FLOAT
from relic.onnx.sessions import PartName, load_tables, open_session
from relic.options import ToolchainName
from relic.shards.shard_set import open_shard_set
from tests.export.toolchains.conftest import export_int8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIDE, CROPS = 96, 24


def in_onnxruntime(folder: Path, part: PartName, inputs: Floats) -> Floats:
    session = open_session(folder / f"{part}.onnx")
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in inputs])


def in_simulator(name: ToolchainName, folder: Path, part: PartName, inputs: Floats, work: Path) -> Floats:
    model = folder / f"{part}.onnx"
    out = work / f"{name}-{part}"
    out.mkdir()
    if name == "ethos-u":
        data = to_tflite(onnx.load(model), part)
        model = out / f"{part}.tflite"
        model.write_bytes(data)
    toolchain = TOOLCHAINS[name]
    return run_script(find_python(name), toolchain.script, part, toolchain.devices[0], model, inputs, out)[1]


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_streams_decode_in_both_directions(
    name: ToolchainName, installed: Callable[[ToolchainName], None], photographs: Path, tmp_path: Path
) -> None:
    installed(name)
    folder = export_int8(
        photographs / "swapped" / "last.pt", photographs / "shards", tmp_path / "export", "subpixel", SIDE
    )
    tables = load_tables(folder)
    shards = open_shard_set(photographs / "shards", "val")
    samples = evenly_spread(shards, CROPS)
    x = np.stack([fit_to_size(crop, SIDE, SIDE) for crop in read_crops(shards, samples)])
    latents = {
        "fp32": in_onnxruntime(folder / FLOAT, "encoder", x),
        "int8": in_onnxruntime(folder, "encoder", x),
        name: in_simulator(name, folder, "encoder", x, tmp_path),
    }
    sent = {writer: [quantize(y, tables) for y in ys] for writer, ys in latents.items()}
    streams = {writer: [pack(one, SIDE, SIDE, tables) for one in symbols] for writer, symbols in sent.items()}
    read = {writer: [unpack(one, tables).symbols for one in written] for writer, written in streams.items()}
    for writer, symbols in sent.items():
        assert all(np.array_equal(a, b) for a, b in zip(symbols, read[writer], strict=True)), writer
    assert not all(np.array_equal(a, b) for a, b in zip(sent["fp32"], sent["int8"], strict=True))

    y_hat = np.stack([dequantize(one, tables) for one in itertools.chain(*read.values())])
    images = {
        "fp32": in_onnxruntime(folder / FLOAT, "decoder", y_hat),
        "int8": in_onnxruntime(folder, "decoder", y_hat),
        name: in_simulator(name, folder, "decoder", y_hat, tmp_path),
    }
    for one, other in itertools.combinations(images.values(), 2):
        error = np.square(np.subtract(one, other, dtype=np.float64)).mean((1, 2, 3))
        assert (10 * np.log10(1 / np.maximum(error, 1e-12))).min() > 25  # a wrong symbol would be seen in the image
