"""Export sets give the numbers their checkpoint gives, by onnxruntime and the tables alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluate import evaluator
from evaluate.run import main
from export.onnx_parts import main as export_main

pytestmark = pytest.mark.torch

ExportSet = Callable[..., Path]


@pytest.fixture
def export_set(tmp_path: Path, save_codec: Callable[..., Path]) -> ExportSet:
    """A function that exports a random codec, by default of any size."""

    def export(name: str = "onnx", *flags: str, replaced: str = "all") -> Path:
        checkpoint = save_codec(f"{name}.pt", replaced=replaced)
        assert export_main(["--ckpt", str(checkpoint), "--part", "all", "--out", str(tmp_path / name), *flags]) == 0
        return tmp_path / name

    return export


@pytest.mark.parametrize("replaced", ["all", "none"])
def test_the_numbers_are_the_checkpoint_s(
    replaced: str, export_set: ExportSet, folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    exported = export_set("parts", "--dynamic", replaced=replaced)
    outcome = run("--checkpoint", tmp_path / "parts.pt", "--onnx", exported, "--images", folder, "--recon_count", 0)
    assert outcome.code == 0
    torch_entry, onnx_entry = outcome.summary
    assert (torch_entry["runtime"], onnx_entry["runtime"]) == ("torch", "onnxruntime")
    assert onnx_entry["replaced"] == replaced and onnx_entry["checkpoint"] == str(exported)
    by_torch, by_onnx = outcome.rows[:4], outcome.rows[4:]
    for mine, theirs in zip(by_onnx, by_torch, strict=True):
        assert mine["name"] == theirs["name"]
        assert float(mine["psnr_db"]) == pytest.approx(float(theirs["psnr_db"]), abs=1e-3)
        # A latent between two integers may fall to either side: a symbol or two of some thousand.
        assert float(mine["file_bytes"]) == pytest.approx(float(theirs["file_bytes"]), abs=4)
        symbol_bits = float(mine["bpp_real"]) * int(mine["width"]) * int(mine["height"])
        estimated_bits = float(mine["bpp_estimated"]) * int(mine["width"]) * int(mine["height"])
        assert 32 <= symbol_bits - estimated_bits <= 64 + 0.001 * estimated_bits
        if mine["ms_ssim"]:
            assert float(mine["ms_ssim"]) == pytest.approx(float(theirs["ms_ssim"]), abs=1e-5)


def test_a_fixed_size_takes_its_own_images_and_names_others(
    export_set: ExportSet,
    shards: Path,
    folder: Path,
    run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = export_set("fixed", "--input_size", "176")
    outcome = run("--onnx", exported, "--shards", shards)
    assert (outcome.code, outcome.summary[0]["num_images"], outcome.summary[0]["label"]) == (0, 5, "fixed")
    capsys.readouterr()
    # At once: no image is scored by the codec before it.
    monkeypatch.setattr(evaluator, "Scorer", None)
    arguments = ["--checkpoint", "embedded", "--onnx", str(exported), "--images", str(folder)]
    arguments += ["--out", str(folder.parent / "other")]
    assert main([*arguments, "--device", "cpu", "--workers", "2"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("evaluate/run.py: error: fixed, a.png: an image of 1x1 pixels, but ")
    assert "for 176x176: export with --width 16 --height 16" in last and "or with --dynamic" in last
    assert not (folder.parent / "other").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"no"), "onnxruntime cannot load it"),
        (lambda folder: (folder / "tables.npz").write_bytes(b"no"), "not a readable table file"),
        (lambda folder: (folder / "export.json").write_text("{}"), "export.json: not readable"),
        (lambda folder: (folder / "decoder.onnx").unlink(), "holds no decoder.onnx"),
    ],
)
def test_a_damaged_set_is_named(
    spoil: Callable[[Path], object],
    said: str,
    export_set: ExportSet,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = export_set("spoilt", "--dynamic")
    spoil(exported)
    capsys.readouterr()
    try:
        code = main(["--onnx", str(exported), "--shards", str(shards), "--out", str(tmp_path / "out")])
    except SystemExit as end:
        code = int(str(end.code))
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert error.startswith(f"evaluate/run.py: error: --onnx {exported}") and said in error
    assert not (tmp_path / "out").exists()


def test_tables_of_another_codec_are_refused(
    export_set: ExportSet,
    save_codec: Callable[..., Path],
    make_codec: Callable[..., Any],
    tmp_path: Path,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = export_set("mixed", "--dynamic")
    model = make_codec("all")
    model.entropy_bottleneck.quantiles.data[..., 1] += 0.25
    other = save_codec("other.pt", replaced="all", model=model)
    assert export_main(["--ckpt", str(other), "--part", "all", "--out", str(tmp_path / "other"), "--dynamic"]) == 0
    (tmp_path / "other" / "tables.npz").replace(exported / "tables.npz")
    assert main(["--onnx", str(exported), "--shards", str(shards), "--out", str(tmp_path / "out")]) == 2
    assert "was not exported with the tables.npz beside it" in capsys.readouterr().err


def test_images_of_the_page_come_from_onnxruntime_too(
    export_set: ExportSet, folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("RGB", (60, 50), "navy").save(folder / "e.png")
    outcome = run("--onnx", export_set("page", "--dynamic"), "--images", folder, "--report_images", 9)
    page = (outcome.out / "report.html").read_text()
    assert page.count('<article class="viewer"') == 5
    assert json.loads((outcome.out / "metrics.json").read_text())["curves"][0]["name"].endswith(", ONNX")
