"""Streams of each runtime are read in all others, and what differs is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.exchange import streams
from export.exchange.config import ExchangeConfig
from export.exchange.plan import make_plan
from export.exchange.streams import CodecRuntime, Pair, exchange_streams, failures_line
from export.exchange_streams import main
from relic.arrays import Floats
from relic.bitstream.container import Stream, unpack
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.cli import parse
from relic.onnx.sessions import load_tables, open_session
from tests.conftest import refusal
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint, MakeExport, as_batch, smooth_image

pytestmark = pytest.mark.torch


def test_each_pair_is_the_writer_s_symbols_in_the_reader_s_decoder(make_export: MakeExport) -> None:
    folder = make_export()
    tables = load_tables(folder)
    encoder, decoder = (open_session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
    x = as_batch(smooth_image(HEIGHT, WIDTH), smooth_image(HEIGHT, WIDTH, 1))

    def runtime(name: str, more: float, brighter: float) -> CodecRuntime:
        return CodecRuntime(
            name,
            tables,
            lambda images: (
                np.concatenate([encoder.run(None, {"x": one[None]})[0] for one in images]) + np.float32(more)
            ),
            lambda y_hat: (
                np.concatenate([decoder.run(None, {"y_hat": one[None]})[0] for one in y_hat]) + np.float32(brighter)
            ),
        )

    exchange = exchange_streams([runtime("a", 0, 0), runtime("b", 1, 0.125)], x)
    assert (exchange.runtimes, exchange.images) == (["a", "b"], 2)
    assert failures_line(exchange) == "0 of 8 streams have other symbols"
    found = {(pair.writer, pair.reader): pair.psnr_db for pair in exchange.pairs}
    assert len(found) == 4
    y = encoder.run(None, {"x": x[:1]})[0][0], encoder.run(None, {"x": x[1:]})[0][0]
    for (writer, reader), psnr_db in found.items():
        symbols = [quantize(one + np.float32(writer == "b"), tables) for one in y]
        x_hat = np.concatenate([decoder.run(None, {"y_hat": dequantize(one, tables)[None]})[0] for one in symbols])
        x_hat = (x_hat + np.float32(0.125 * (reader == "b"))).clip(0, 1)
        squares = np.square(x.astype(float) - np.rint(x_hat * 255.0) / 255).mean((1, 2, 3))
        assert psnr_db == pytest.approx(np.mean(-10 * np.log10(squares)), abs=1e-4)


def test_other_symbols_are_counted(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, seen = load_tables(make_export()), 0

    def unpack_wrongly(data: bytes, own: Tables) -> Stream:
        nonlocal seen
        seen += 1
        stream = unpack(data, own)
        return stream if seen > 1 else stream._replace(symbols=stream.symbols + 1)

    monkeypatch.setattr(streams, "unpack", unpack_wrongly)
    shape = 2, tables.num_channels, HEIGHT // 16, WIDTH // 16
    same: Floats = np.zeros((2, 3, HEIGHT, WIDTH), np.float32)
    runtime = CodecRuntime("a", tables, lambda _: np.ones(shape, np.float32), lambda y_hat: same)
    exchange = exchange_streams([runtime], same + np.float32(0.5))
    assert [pair[:3] for pair in exchange.pairs] == [("a", "a", 1)]
    assert failures_line(exchange) == "1 of 2 streams have other symbols"


@pytest.mark.commands
def test_torch_and_onnxruntime_exchange_images_of_a_folder(
    make_export: MakeExport, make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(3):
        Image.fromarray(smooth_image(100, 120, seed)).save(images / f"{seed}.png")
    argv = ["--export", str(make_export()), "--images", str(images), "--json", str(tmp_path / "found.json")]
    assert main([*argv, "--ckpt", str(make_checkpoint())]) == 0
    assert "0 of 12 streams have other symbols" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["runtimes"], found["images"]) == (["torch", "float32"], 3)
    pairs = [Pair(**pair) for pair in found["pairs"]]
    assert len(pairs) == 4
    assert all(pair.psnr_db == pytest.approx(pairs[0].psnr_db, abs=0.01) for pair in pairs)

    assert main([*argv, "--ckpt", "embedded"]) == 1
    assert "was made from another checkpoint" in capsys.readouterr().err


def test_a_wrong_flag_is_refused(make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: str) -> str:
        argv = ["--export", str(make_export()), *flags]
        return refusal(lambda: make_plan(parse(ExchangeConfig, argv, prog="exchange")), capsys)

    assert "--images no/where" in said("--images", "no/where")
    assert f"--images {tmp_path}: no image in it" in said("--images", str(tmp_path))
    Image.fromarray(smooth_image(16, 16)).save(tmp_path / "a.png")
    images = ["--images", str(tmp_path)]
    assert "--ckpt no.pt: no such file" in said(*images, "--ckpt", "no.pt")
    assert "name each once" in said(*images, "--toolchains", "qnn", "qnn")
    assert "install_toolchain.py --toolchain qnn" in said(*images, "--toolchains", "qnn")
    assert "--toolchain ethos-u: runs only 8 bits" in said(*images, "--toolchains", "ethos-u")
