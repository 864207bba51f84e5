"""Images through the exported parts without torch, against torch's own coding."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.codec import main, read_rgb
from export.onnx_parts import main as export_main
from export.source import load_source
from relic import __version__
from relic.bitstream.coder import PythonCoder
from relic.bitstream.container import pack, read_stream
from relic.bitstream.tables import Tables
from relic.codec.checkpoint import load_checkpoint, save_checkpoint
from relic.codec.coding import analyse, pad_to_stride
from relic.codec.pixels import to_float
from relic.options import Parts
from tests.bitstream.strategies import with_contexts
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint, MakeExport, smooth_image


def save_image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Write an image; return x (1, 3, H, W)."""
    pixels = smooth_image(height, width, seed=5)
    Image.fromarray(pixels).save(path)
    return to_float(torch.from_numpy(pixels[None]))


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (33, 17), (1, 1), (128, 144)])
def test_torch_symbols_give_the_same_bytes(
    height: int, width: int, tmp_path: Path, make_export: MakeExport, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_export("all", dynamic=True), load_checkpoint(make_checkpoint("all")).build()
    tables = Tables.load(folder / "tables.npz")
    x = save_image(tmp_path / "in.png", height, width)
    assert main(["encode", str(tmp_path / "in.png"), str(tmp_path / "out.relic"), "--export", str(folder)]) == 0
    stream = read_stream(tmp_path / "out.relic", tables)
    symbols = analyse(model, x)[0]
    assert len(np.unique(symbols)) > 3
    assert np.array_equal(stream.symbols, symbols)
    assert (tmp_path / "out.relic").read_bytes() == pack(symbols, width, height, tables)

    assert main(["decode", str(tmp_path / "out.relic"), str(tmp_path / "out.png"), "--export", str(folder)]) == 0
    decoded = np.asarray(Image.open(tmp_path / "out.png"))
    assert decoded.shape == (height, width, 3)
    with torch.inference_mode():
        expected = model(pad_to_stride(x))["x_hat"][0, :, :height, :width].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(decoded / 255 - expected).max() <= 1 / 255


@pytest.mark.parametrize("upsample", ["deconv5", "deconv6", "subpixel", "subpixel-deconv2"])
@pytest.mark.parametrize("part", ["all", "none"])
def test_a_decoder_in_strips_gives_the_pixels_of_the_whole_image(
    part: Parts, upsample: str, tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip of one row of latents, whose margin is all that reaches its pixels."""
    flags = ["--ckpt", str(make_checkpoint(part)), "--part", "all", "--dynamic", "--input_size", "64"]
    assert export_main([*flags, "--upsample", upsample, "--out", str(tmp_path / "export")]) == 0
    save_image(tmp_path / "in.png", 170, 50)
    common = ["--export", str(tmp_path / "export")]
    assert main(["encode", str(tmp_path / "in.png"), str(tmp_path / "in.relic"), *common]) == 0
    decoded = []
    for latents in (1 << 20, 1, 8):
        monkeypatch.setattr("export.codec._LATENTS_PER_RUN", latents)
        assert main(["decode", str(tmp_path / "in.relic"), str(tmp_path / "out.png"), *common]) == 0
        decoded.append(np.asarray(Image.open(tmp_path / "out.png")).astype(int))
    for strips in decoded[1:]:
        assert np.abs(strips - decoded[0]).max() <= 1  # sums in another order may round to the next level
        assert (strips != decoded[0]).mean() < 1e-3


def test_a_fixed_export_takes_what_its_padding_makes_fit(tmp_path: Path, make_export: MakeExport) -> None:
    save_image(tmp_path / "in.png", HEIGHT - 15, WIDTH - 1)
    folder = str(make_export("all"))
    assert main(["encode", str(tmp_path / "in.png"), str(tmp_path / "out.relic"), "--export", folder]) == 0
    assert main(["decode", str(tmp_path / "out.relic"), str(tmp_path / "out.JPG"), "--export", folder]) == 0
    with Image.open(tmp_path / "out.JPG") as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (WIDTH - 1, HEIGHT - 15))


@pytest.fixture
def bench(tmp_path: Path, make_export: MakeExport) -> Path:
    """A folder with an image, its stream, an export and another codec's export, to be damaged by the tests."""
    shutil.copytree(make_export("all"), tmp_path / "export")
    shutil.copytree(make_export("none"), tmp_path / "other")
    save_image(tmp_path / "in.png")
    save_image(tmp_path / "large.png", 100, 200)
    encode = ["encode", str(tmp_path / "in.png"), str(tmp_path / "in.relic"), "--export", str(tmp_path / "export")]
    assert main(encode) == 0
    return tmp_path


def _solved_tables(folder: Path) -> None:
    tables = Tables.load(folder / "export" / "tables.npz")
    Tables(tables.cdf, tables.cdf_length, tables.offset, tables.medians + 0.25, 16).save(
        folder / "export" / "tables.npz"
    )


def _cut(name: str, num_bytes: int = -9) -> None:
    path = Path(name)
    path.write_bytes(path.read_bytes()[:num_bytes])


def _flip(name: str) -> None:
    data = bytearray(Path(name).read_bytes())
    data[len(data) // 2] ^= 1
    Path(name).write_bytes(data)


ENCODE, DECODE = ["encode", "in.png", "out.relic"], ["decode", "in.relic", "out.png"]


@pytest.mark.parametrize(
    ("harm", "arguments", "message", "code"),
    [
        (None, ["encode", "large.png", "out.relic"], "--width 208 --height 112", 1),
        (_solved_tables, ENCODE, "encoder.onnx: was not exported with the tables.npz", 1),
        (_solved_tables, DECODE, "other tables", 1),
        (lambda _: shutil.copy("other/tables.npz", "export"), ENCODE, "was not exported with", 1),
        (lambda _: _cut("export/encoder.onnx"), ENCODE, "encoder.onnx", 1),
        (lambda _: _cut("export/decoder.onnx", 100), DECODE, "decoder.onnx", 1),
        (lambda _: _cut("export/tables.npz"), ENCODE, "tables.npz", 1),
        (lambda _: _cut("in.relic"), DECODE, "in.relic", 1),
        (lambda _: _cut("in.png", 60), ENCODE, "in.png", 1),
        (None, ["encode", "in.relic", "out.relic"], "in.relic", 1),
        (None, ["decode", "in.png", "out.png"], "in.png", 1),
        (lambda _: Path("export/decoder.onnx").unlink(), DECODE, "holds no decoder.onnx", 2),
        (None, ["encode", "no.png", "out.relic"], "no.png: no such file", 2),
        (lambda _: Path("folder.relic").mkdir(), ["encode", "in.png", "folder.relic"], "folder.relic: name a file", 2),
        (None, ["decode", "in.relic", "export"], "export: name a file", 2),
        (lambda _: _flip("in.relic"), DECODE, "in.relic: damaged", 1),
        (None, ["encode", "in.png", "out.png"], "*.relic", 2),
        (None, ["decode", "in.relic", "out.bmp"], "*.png", 2),
        (None, ["encode", "in.png", "no/out.relic"], "no: no such folder", 2),
        (None, ["compress", "in.png", "out.relic"], "compress", 2),
        (None, ["encode", "in.png"], "OUT.relic", 2),
        (None, [*ENCODE, "--exp", "other"], "--exp", 2),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    harm: object,
    arguments: list[str],
    message: str,
    code: int,
    bench: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bench)
    if callable(harm):
        harm(bench)
    before = {path: path.stat().st_mtime_ns for path in bench.rglob("*")}
    capfd.readouterr()
    try:
        found = main([*arguments, "--export", "export"])
    except SystemExit as exit_:
        found = int(str(exit_.code))
    error = capfd.readouterr().err
    assert (found, error.count("\n")) == (code, 1), error
    assert error.startswith("export/codec.py: error: ")
    assert message in error
    assert {path: path.stat().st_mtime_ns for path in bench.rglob("*")} == before


def test_a_decoder_of_another_size_says_how_to_export(
    bench: Path, make_export: MakeExport, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = str(bench / "large.relic")
    assert main(["encode", str(bench / "large.png"), stream, "--export", str(make_export("all", dynamic=True))]) == 0
    assert main(["decode", stream, str(bench / "out.png"), "--export", str(bench / "export")]) == 1
    assert "--width 208 --height 112" in capsys.readouterr().err


def test_an_export_for_batches_is_refused(
    bench: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bench / "pairs"
    flags = ["--ckpt", str(make_checkpoint("all")), "--out", str(out), "--part", "all", "--batch", "2"]
    assert export_main([*flags, "--input_size", "32"]) == 0
    assert json.loads((out / "export.json").read_text())["batch"] == 2
    assert main(["encode", str(bench / "in.png"), str(bench / "out.relic"), "--export", str(out)]) == 1
    assert "--batch 1" in capsys.readouterr().err


def test_images_come_upright_and_in_rgb(tmp_path: Path) -> None:
    pixels = smooth_image(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "turned.png"), pixels)

    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(pixels[:, :, :1], 3, axis=2))

    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_rgb(tmp_path / "deep.png"), np.repeat(pixels[:, :, :1], 3, axis=2))

    alpha = np.dstack([pixels, np.zeros((20, 30), np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "glass.png")
    assert (read_rgb(tmp_path / "glass.png") == 255).all()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"relic {__version__}\n")


def test_the_header_holds_the_true_size(bench: Path) -> None:
    assert struct.unpack_from("<II", (bench / "in.relic").read_bytes(), 8) == (WIDTH, HEIGHT)


def test_any_coder_decodes_what_any_encoded_with_contexts(
    tmp_path: Path, make_export: MakeExport, make_checkpoint: MakeCheckpoint
) -> None:
    folder = shutil.copytree(make_export("all", dynamic=True), tmp_path / "export")
    model = load_checkpoint(make_checkpoint("all")).build()
    plain = Tables.load(folder / "tables.npz")
    tables = dataclasses.replace(plain, contexts=with_contexts(plain.num_channels, seed=0).contexts)
    tables.save(folder / "tables.npz")
    symbols = analyse(model, save_image(tmp_path / "in.png", 100, 83))[0]
    files = {"new": [], "old": ["--contexts", "false"]}
    for name, flags in files.items():
        line = ["encode", str(tmp_path / "in.png"), str(tmp_path / f"{name}.relic"), "--export", str(folder), *flags]
        assert main(line) == 0
    data = {name: (tmp_path / f"{name}.relic").read_bytes() for name in files}
    assert data["new"] == pack(symbols, 83, 100, tables, PythonCoder())
    assert data["old"] == pack(symbols, 83, 100, plain)
    assert len(data["new"]) != len(data["old"])
    for name in files:
        np.testing.assert_array_equal(read_stream(tmp_path / f"{name}.relic", tables, PythonCoder()).symbols, symbols)
        assert (
            main(["decode", str(tmp_path / f"{name}.relic"), str(tmp_path / f"{name}.png"), "--export", str(folder)])
            == 0
        )
    assert (tmp_path / "new.png").read_bytes() == (tmp_path / "old.png").read_bytes()


def test_an_export_has_the_contexts_of_its_checkpoint(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(make_checkpoint("all"))
    contexts = with_contexts(12, seed=0).contexts
    save_checkpoint(tmp_path / "a.pt", dataclasses.replace(checkpoint, contexts=contexts))
    new, old = (load_source(str(tmp_path / "a.pt"), None, contexts=value).tables for value in (True, False))
    assert contexts is not None and new.contexts is not None and new.contexts.digest == contexts.digest
    assert old.contexts is None and old == new.plain()
