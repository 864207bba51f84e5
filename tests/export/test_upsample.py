"""The rewrites of the decoder's upsampling against torch's own layer."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.onnx_parts import main
from export.parts import Decoder
from export.upsample import Shuffle, rewrite_upsampling, shuffle_by_deconv2
from relic.codec.checkpoint import load_checkpoint
from relic.codec.pretrained import EMBEDDED_FILE, finished_model, read_codec
from relic.errors import InputError
from relic.onnx.sessions import open_session
from relic.options import Upsample
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint

REWRITES: list[Upsample] = [name for name in get_args(Upsample) if name != "deconv5"]
BETWEEN = {"relu": nn.ReLU(), "clip": nn.Hardtanh(0, 1), "nothing": nn.Identity()}


@pytest.mark.parametrize("upsample", REWRITES)
@pytest.mark.parametrize("following", BETWEEN)
@pytest.mark.parametrize(("channels", "size"), [((3, 5), (1, 1)), ((4, 3), (7, 5)), ((1, 1), (2, 9))])
@torch.no_grad()
def test_a_layer_is_the_same_function(
    upsample: Upsample, following: str, channels: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.ConvTranspose2d(*channels, 5, stride=2, padding=2, output_padding=1), BETWEEN[following]
    ).double()
    rewritten = rewrite_upsampling(original, upsample).double()
    assert (5, 5) not in [layer.kernel_size for layer in rewritten.modules() if isinstance(layer, nn.ConvTranspose2d)]
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    expected = original(x)
    assert expected.shape[2:] == (2 * size[0], 2 * size[1])
    torch.testing.assert_close(rewritten(x), expected, rtol=0, atol=1e-6)
    assert rewritten[0] is not original[0]


@torch.no_grad()
def test_both_interleavings_are_onnx_depth_to_space() -> None:
    x = torch.randn(2, 12, 3, 4)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("DepthToSpace", ["x"], ["out"], blocksize=2, mode="DCR")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [value], [out]), opset_imports=[onnx.helper.make_opsetid("", 13)]
    )
    (expected,) = open_session(model.SerializeToString()).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(Shuffle()(x).numpy(), expected)
    np.testing.assert_allclose(shuffle_by_deconv2(3)(x).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("upsample", REWRITES)
@torch.no_grad()
def test_the_embedded_decoder_gives_the_same_image(upsample: Upsample) -> None:
    """All four layers with trained weights: within 1e-5 in fp32."""
    model = finished_model(read_codec(EMBEDDED_FILE, flag="--ckpt"), "--ckpt")
    y_hat = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (1, 48, 6, 7)).round().astype(np.float32))
    expected = model.g_s(y_hat).clamp(0, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(Decoder(model, upsample).eval()(y_hat), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("upsample", "operators"),
    [
        ("deconv6", ["ConvTranspose", "Relu"]),
        ("subpixel", ["Conv", "Relu", "DepthToSpace"]),
        ("subpixel-deconv2", ["Conv", "Relu", "ConvTranspose"]),
    ],
)
def test_the_file_holds_what_was_asked_for(
    upsample: str, operators: list[str], tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    out = tmp_path / "d.onnx"
    size = ["--height", str(HEIGHT), "--width", str(WIDTH), "--upsample", upsample, "--opset", "11"]
    assert main(["--ckpt", str(make_checkpoint()), "--part", "decoder", "--out", str(out), *size]) == 0
    graph = onnx.load(out).graph
    assert [node.op_type for node in graph.node][: len(operators)] == operators
    attributes = {
        (node.op_type, attribute.name): onnx.helper.get_attribute_value(attribute)
        for node in graph.node
        for attribute in node.attribute
    }
    assert not any(attributes.get(("ConvTranspose", "output_padding"), [0]))
    assert attributes.get(("DepthToSpace", "mode"), b"DCR") == b"DCR"
    y_hat = np.random.default_rng(0).normal(0, 3, (1, 12, HEIGHT // 16, WIDTH // 16)).astype(np.float32)
    (found,) = open_session(out).run(None, {"y_hat": y_hat})
    with torch.inference_mode():
        expected = load_checkpoint(make_checkpoint()).build().g_s(torch.from_numpy(y_hat)).clamp(0, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_another_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"g_s\.0 is not the 5x5 one"):
        rewrite_upsampling(nn.Sequential(nn.ConvTranspose2d(3, 3, 3, stride=2)), "subpixel")
