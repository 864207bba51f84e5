"""TFLite files against onnxruntime on the QDQ files they are made from."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from export.onnx_parts import main
from export.tflite.conversion import to_tflite
from relic.errors import InputError
from relic.onnx.layout import CALIBRATION, FLOAT
from relic.onnx.sessions import open_session
from relic.options import Parts, Upsample
from tests.conftest import write_shards
from tests.export.conftest import MakeCheckpoint
from tests.export.tflite.interpreter import Interpreter

pytestmark = pytest.mark.torch

HEIGHT, WIDTH = 48, 64
Quantized = Callable[..., Path]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Quantized:
    """A function from --upsample to an INT8 export."""
    shards = tmp_path_factory.mktemp("tflite")
    write_shards(shards, "train", (100,), side=64, seed=3)
    write_shards(shards, "val", (2,), side=64, seed=4)
    made: dict[tuple[str, ...], Path] = {}

    def make(upsample: Upsample = "deconv5", replaced: Parts = "all", *flags: str) -> Path:
        key = (upsample, replaced, *flags)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("set") / "out"
            argv = ["--ckpt", str(make_checkpoint(replaced)), "--part", "all", "--out", str(made[key])]
            argv += ["--height", str(HEIGHT), "--width", str(WIDTH), "--upsample", upsample, *flags]
            assert main([*argv, "--int8", "--calib_shards", str(shards)]) == 0
        return made[key]

    return make


OPERATORS = {
    "deconv5": ["TRANSPOSE_CONV"] * 4,
    "deconv6": ["TRANSPOSE_CONV"] * 4,
    "subpixel": ["CONV_2D", "RESHAPE", "TRANSPOSE", "RESHAPE"] * 4,
    "subpixel-deconv2": ["CONV_2D", "TRANSPOSE_CONV"] * 4,
}


@pytest.mark.parametrize("upsample", get_args(Upsample))
def test_a_file_computes_what_onnxruntime_computes(upsample: Upsample, quantized: Quantized) -> None:
    folder = quantized(upsample)
    for part in ("encoder", "decoder"):
        model = onnx.load(folder / f"{part}.onnx")
        written = Interpreter(to_tflite(model, f"relic {part}"))
        session = open_session(folder / f"{part}.onnx")
        assert written.description == f"relic {part}"
        expected_names = ["PAD", "CONV_2D"] * 4 if part == "encoder" else OPERATORS[upsample]
        assert written.names() == expected_names
        (step,), _ = written.grid(written.output)
        for one, name in zip(written.operators, written.names(), strict=True):
            if name in ("CONV_2D", "TRANSPOSE_CONV"):  # a ReLU is named where integers begin at 0
                from_zero = written.grid(int(one.array(2, "<i4")[0]))[1] == -128
                assert one.table(4).get(3, "b") == from_zero
        for file in sorted((folder / CALIBRATION / part).glob("*.npy"))[:3]:
            values = np.load(file)
            (expected,) = session.run(None, {session.get_inputs()[0].name: values})
            apart = np.abs(written.run(values) - expected) / step
            assert expected.std() > 2 * step, "a flat output would prove nothing"
            assert apart.max() < 1.01
            # onnxruntime computes transposed convolutions in float32, which rounds some values the other way.
            assert (apart > 0.5).mean() < (0.02 if "TRANSPOSE_CONV" in written.names() else 0.005)


@pytest.mark.parametrize(
    ("replaced", "part", "flags", "says"),
    [
        ("decoder", "encoder", (), "in float32.*--replace_parts all"),
        ("all", "encoder", ("--int8_keep_last",), "without --int8_keep_last"),
    ],
)
def test_what_is_not_in_integers_is_refused(
    replaced: Parts, part: str, flags: tuple[str, ...], says: str, quantized: Quantized
) -> None:
    folder = quantized("deconv5", replaced, *flags)
    with pytest.raises(InputError, match=says):
        to_tflite(onnx.load(folder / f"{part}.onnx"), "")


def test_a_float_file_and_an_open_size_are_refused(quantized: Quantized) -> None:
    with pytest.raises(InputError, match="export with --int8"):
        to_tflite(onnx.load(quantized() / FLOAT / "encoder.onnx"), "")
    model = onnx.load(quantized() / "encoder.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match="--dynamic"):
        to_tflite(model, "")
