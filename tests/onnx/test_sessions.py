"""Parts that are none: other names, shapes, types and operators, and outputs that are no image."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relic.bitstream.tables import Tables
from relic.errors import InputError
from relic.onnx.layout import TABLES_KEY
from relic.onnx.sessions import open_decoder, open_encoder, run_part

TABLES = Tables(
    cdf=np.array([[0, 10, 65536]] * 2), cdf_length=np.array([3, 3]), offset=np.array([0, 0]),
    medians=np.zeros(2, np.float32), stride=16,
)  # fmt: skip
OPEN = ["batch", 3, "height", "width"], ["batch", 2, "h", "w"]


def part(
    taken: list[Any] = OPEN[0], given: list[Any] = OPEN[1], *, name: str = "x", out: str = "y",
    kind: int = TensorProto.FLOAT, scale: float = 1.0, stride: int = 16, digest: str | bytes = TABLES.digest,
) -> onnx.ModelProto:  # fmt: skip
    """An encoder of one convolution."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array((rng.normal(size=(2, 3, 16, 16)) * scale).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", [name, "w"], [out], strides=[stride, stride])]
    if kind != TensorProto.FLOAT:
        nodes = [
            helper.make_node("Cast", [name], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["f", "w"], ["g"], strides=[stride, stride]),
            helper.make_node("Cast", ["g"], [out], to=kind),
        ]
    ends = helper.make_tensor_value_info(name, kind, taken), helper.make_tensor_value_info(out, kind, given)
    graph = helper.make_graph(nodes, "part", [ends[0]], [ends[1]], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    entry = model.metadata_props.add()
    entry.key, entry.value = TABLES_KEY, digest
    return model


def opened(folder: Path, model: onnx.ModelProto | bytes) -> Any:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "encoder.onnx").write_bytes(data)
    return open_encoder(folder, TABLES, 1)


def refusal(folder: Path, model: onnx.ModelProto | bytes) -> str:
    with pytest.raises(InputError) as caught:
        opened(folder, model)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'encoder.onnx'}: ")
    return message


def test_a_part_is_opened_and_run(tmp_path: Path) -> None:
    encoder = opened(tmp_path, part())
    assert encoder.fixed_size is None
    assert run_part(encoder, np.zeros((1, 3, 32, 48), np.float32)).shape == (1, 2, 2, 3)
    assert opened(tmp_path, part([1, 3, 32, 48], [1, 2, 2, 3])).fixed_size == (32, 48)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (part(name="image"), "takes image tensor(float)"),
        (part(out="latent"), "gives latent tensor(float)"),
        (part(kind=TensorProto.DOUBLE), "takes x tensor(double)"),
        (part(["batch", 3, 32, 48], ["batch", 2, "h", "w"], stride=8), "gives 5x3 for 48x32|onnxruntime cannot load"),
        (part([4, 3, "height", "width"]), "takes 4 images at once; export again with --batch 1"),
        (part(digest="another"), "was not exported with the tables.npz beside it"),
        (b"", "not an ONNX file"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX file"),
        (b"hello world", "not an ONNX file"),
        (part().SerializeToString()[:-1], "not an ONNX file"),
        (part().SerializeToString() * 2, "not an ONNX file"),
    ],
)
def test_other_interfaces_are_refused(tmp_path: Path, model: Any, said: str) -> None:
    message = refusal(tmp_path, model)
    assert any(each in message for each in said.split("|")), message


def test_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(part().SerializeToString())
    with pytest.raises(InputError, match=r"decoder\.onnx: takes x .*, not y_hat"):
        open_decoder(tmp_path, TABLES, 1)


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=body))


def _branches(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Custom")
    node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.add(name="one")


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="d")


def _external_weights(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=1, dims=[1], name="c", data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_loop, "its operator Loop runs a graph of its own"),
        (_branches, "its operator Custom runs a graph of its own"),
        (_function, "it defines functions"),
        (_external_weights, "its weights are in another file"),
        (_external_constant, "its weights are in another file"),
        (_sparse, "sparse weights"),
    ],
)
def test_more_than_layers_is_not_even_loaded(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = part()
    change(model)
    os.mkfifo(tmp_path / "weights.bin")  # a runtime that opened it would wait for ever
    monkeypatch.setattr("relic.onnx.sessions.open_session", lambda *_, **__: pytest.fail("loaded"))
    assert said in refusal(tmp_path, model)


def test_a_name_in_the_metadata_may_be_no_text(tmp_path: Path) -> None:
    data = part(digest="?" * 64).SerializeToString().replace(b"?" * 64, b"\xff" * 64)
    refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (part(scale=float("inf")), "its output is not finite"),
        (part(stride=8), "gives float32 (1, 2, 3, 5) for (1, 3, 32, 48), not float32 (1, 2, 2, 3)"),
    ],
)
def test_an_output_that_is_none_is_refused(tmp_path: Path, model: onnx.ModelProto, said: str) -> None:
    encoder = opened(tmp_path, model)
    with pytest.raises(InputError) as caught:
        run_part(encoder, np.ones((1, 3, 32, 48), np.float32))
    assert said in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'encoder.onnx'}: ")


def test_damage_anywhere_is_one_error_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = part().SerializeToString()
    for place in [*range(0, 60), *range(len(data) - 200, len(data))]:
        try:
            encoder = opened(tmp_path, data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            run_part(encoder, np.ones((1, 3, 32, 48), np.float32))
        except InputError as error:
            assert str(error).startswith(f"{tmp_path / 'encoder.onnx'}: ")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (helper.make_node("RandomNormal", [], ["z"], shape=[1 << 16, 1 << 16]), "the operator 'RandomNormal'"),
        (helper.make_node("Pad", ["x", "p"], ["z"]), "the operator 'Pad'"),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["z"], strides=[50000, 50000]),
            "ConvTranspose has a size of 50000",
        ),
        (helper.make_node("Conv", ["x", "w"], ["z"], pads=[-1, 0, 0, 0]), "Conv has a size of"),
    ],
)
def test_operators_that_take_any_memory_are_refused(tmp_path: Path, node: onnx.NodeProto, named: str) -> None:
    model = part()
    model.graph.node.insert(0, node)
    assert named in refusal(tmp_path, model)


def test_a_part_larger_than_onnx_files_can_be_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "encoder.onnx").open("wb") as file:
        file.truncate(1 << 35)
    with pytest.raises(InputError, match=r"encoder\.onnx: [\d,]+ bytes; such a file has at most"):
        open_encoder(tmp_path, TABLES, 1)
