import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior, FactorizedPriorReLU
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim

from evaluate import round_trip
from evaluate.codecs import TorchCodec
from relic import __version__
from relic.codec.entropy import refresh_tables

SIZES = {"a.png": (1, 1), "b.PNG": (33, 17), "d.bmp": (176, 176), "more/c.png": (300, 200)}


def pixels_of(path: Path) -> NDArray[Any]:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float64)


def padded(path: Path) -> torch.Tensor:
    """As promised: the right and bottom edges repeated up to multiples of 16."""
    pixels = pixels_of(path)
    height, width = pixels.shape[:2]
    full = np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge") / 255
    return torch.from_numpy(full).float().permute(2, 0, 1)[None]


def test_numbers_are_compressai_s_and_numpy_s(
    save_codec: Callable[..., Path], make_codec: Callable[..., FactorizedPrior], folder: Path, run: Callable[..., Any]
) -> None:
    outcome = run("--checkpoint", save_codec(), "--images", folder)
    assert outcome.code == 0
    model = make_codec()
    model.update(force=True)
    assert [(row["name"], int(row["width"]), int(row["height"])) for row in outcome.rows] == [
        (name, *size) for name, size in SIZES.items()
    ]
    for number, row in enumerate(outcome.rows):
        source, num_pixels = folder / row["name"], math.prod(SIZES[row["name"]])
        x = padded(source)
        with torch.no_grad():
            coded = model.compress(x)
            x_hat = model.decompress(**coded)["x_hat"][0, :, : int(row["height"]), : int(row["width"])]
            likelihoods = model(x)["likelihoods"]["y"]
        symbol_bytes = len(coded["strings"][0][0])
        assert float(row["bpp_real"]) == pytest.approx(8 * symbol_bytes / num_pixels)
        assert int(row["file_bytes"]) == symbol_bytes + 40
        assert float(row["bpp_estimated"]) == pytest.approx(-likelihoods.log2().sum().item() / num_pixels, rel=1e-5)

        origin, decoded = (pixels_of(outcome.out / part / f"{number:03d}.png") for part in ("origin", "codec"))
        np.testing.assert_array_equal(origin, pixels_of(source))
        np.testing.assert_allclose(decoded, x_hat.permute(1, 2, 0).numpy() * 255, atol=0.51)
        psnr_db = 10 * math.log10(255**2 / np.square(origin - decoded).mean())
        assert float(row["psnr_db"]) == pytest.approx(psnr_db, abs=1e-5)
        if min(SIZES[row["name"]]) <= 160:
            assert (row["ms_ssim"], row["ms_ssim_db"]) == ("", "")
        else:
            pair = (torch.from_numpy(image).float().permute(2, 0, 1)[None] for image in (origin, decoded))
            similarity = ms_ssim(*pair, data_range=255).item()
            assert float(row["ms_ssim"]) == pytest.approx(similarity, abs=1e-5)
            assert float(row["ms_ssim_db"]) == pytest.approx(-10 * math.log10(1 - similarity), abs=1e-3)
        assert float(row["encode_ms"]) > 0 and float(row["decode_ms"]) > 0


def test_the_summary_is_the_mean_of_the_csv(
    save_codec: Callable[..., Path], folder: Path, run: Callable[..., Any]
) -> None:
    path = save_codec()
    outcome = run("--checkpoint", path, "--images", folder)
    (entry,) = outcome.summary
    for name in ("psnr_db", "ms_ssim", "ms_ssim_db", "bpp_estimated", "bpp_real", "file_bytes", "encode_ms"):
        values = [float(row[name]) for row in outcome.rows if row[name]]
        assert entry[name] == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert (entry["num_images"], entry["num_without_ms_ssim"], entry["num_exact"]) == (4, 2, 0)
    assert (entry["checkpoint"], entry["label"], entry["images"]) == (str(path), "codec", str(folder))
    assert (entry["architecture"], entry["channels"], entry["replaced"]) == ("bmshj2018_factorized", [8, 12], "none")
    line = outcome.stdout.splitlines()[1].split()
    assert line[:3] == ["codec", "none", f"{entry['psnr_db']:.3f}"] and line[-1] == "4"
    assert "2 images without MS-SSIM" in outcome.stdout


@pytest.mark.parametrize("replaced", ["none", "encoder", "decoder", "all"])
def test_each_checkpoint_is_evaluated_as_what_it_is(
    replaced: str,
    save_codec: Callable[..., Path],
    make_codec: Callable[..., FactorizedPrior],
    shards: Path,
    run: Callable[..., Any],
) -> None:
    outcome = run("--checkpoint", save_codec(replaced=replaced), "--shards", shards, "--recon_count", 1)
    (entry,) = outcome.summary
    assert (outcome.code, entry["replaced"], entry["num_images"]) == (0, replaced, 5)
    x = torch.from_numpy(pixels_of(outcome.out / "origin" / "000.png") / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        x_hat = make_codec(replaced)(x)["x_hat"][0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(pixels_of(outcome.out / "codec" / "000.png"), x_hat, atol=0.51)


@pytest.mark.parametrize("replaced", ["none", "all"])
def test_compressai_s_own_files_are_read_and_keep_their_quantiles(
    replaced: str, make_codec: Callable[..., FactorizedPrior], shards: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    # Tables made from other quantiles would be longer, and the streams with them: the file's own must be used.
    torch.manual_seed(1)
    model = {"none": FactorizedPrior, "all": FactorizedPriorReLU}[replaced](8, 12)
    model.load_state_dict(make_codec(replaced).state_dict())
    model.entropy_bottleneck.quantiles.data[..., 2] = 3
    model.update(force=True)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "theirs.pth.tar")
    outcome = run("--checkpoint", tmp_path / "theirs.pth.tar", "--shards", shards)
    assert outcome.code == 0 and outcome.summary[0]["replaced"] == replaced
    x = torch.from_numpy(pixels_of(outcome.out / "origin" / "000.png") / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        symbol_bytes = len(model.eval().compress(x)["strings"][0][0])
    assert float(outcome.rows[0]["bpp_real"]) == pytest.approx(8 * symbol_bytes / 176**2)


@pytest.mark.parametrize(
    ("train_scope", "loss_type", "solves"), [("replaced+hyper", "rd", True), ("all", "recon", False)]
)
def test_stale_tables_are_made_fresh(
    train_scope: str,
    loss_type: str,
    solves: bool,
    save_codec: Callable[..., Path],
    make_codec: Callable[..., FactorizedPrior],
    shards: Path,
    run: Callable[..., Any],
) -> None:
    model = make_codec()
    model.update(force=True)
    with torch.no_grad():  # the density moves on, the tables stay behind
        for bias in model.entropy_bottleneck.biases:
            bias.mul_(1.5)
        model.entropy_bottleneck.matrices[0].add_(0.5)
    path = save_codec(model=model, train_scope=train_scope, loss_type=loss_type)
    stale = model.entropy_bottleneck._quantized_cdf.clone()
    outcome = run("--checkpoint", path, "--shards", shards, "--recon_count", 1)
    assert outcome.code == 0
    refresh_tables(model, solve=solves)
    assert stale.shape != model.entropy_bottleneck._quantized_cdf.shape or not torch.equal(
        stale, model.entropy_bottleneck._quantized_cdf
    )
    x = torch.from_numpy(pixels_of(outcome.out / "origin" / "000.png") / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        symbol_bytes = len(model.compress(x)["strings"][0][0])
    assert float(outcome.rows[0]["bpp_real"]) == pytest.approx(8 * symbol_bytes / 176**2)


def test_without_bitstream_no_real_rate_is_given(
    save_codec: Callable[..., Path], shards: Path, run: Callable[..., Any]
) -> None:
    outcome = run("--checkpoint", save_codec(), "--shards", shards, "--bitstream", "false", "--recon_count", 0)
    assert (outcome.code, outcome.summary[0]["bpp_real"], outcome.rows[0]["bpp_real"]) == (0, None, "")
    assert outcome.summary[0]["bpp_estimated"] > 0
    written = ["metrics.json", "per_image.csv", "rd.png", "report.html", "summary.md"]
    assert sorted(path.name for path in outcome.out.iterdir()) == written
    assert json.loads((outcome.out / "metrics.json").read_text())["relic_version"] == __version__


def test_an_exact_reconstruction_is_infinite_in_the_csv_and_null_in_json(
    make_codec: Callable[..., FactorizedPrior], save_codec: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_codec()
    torch.nn.init.constant_(model.g_s[6].bias, 50.0)  # everything comes out white
    (tmp_path / "white").mkdir()
    Image.new("RGB", (200, 180), "white").save(tmp_path / "white" / "white.png")
    outcome = run("--checkpoint", save_codec(model=model), "--images", tmp_path / "white")
    (entry,) = outcome.summary
    assert (entry["psnr_db"], entry["ms_ssim_db"], entry["num_exact"]) == (None, None, 1)
    assert (outcome.rows[0]["psnr_db"], entry["ms_ssim"]) == ("inf", pytest.approx(1))
    assert "1 exact reconstruction," in outcome.stdout


@pytest.mark.parametrize(("strict", "code"), [("false", 0), ("true", 1)])
def test_latents_outside_the_density_are_pointed_out(
    strict: str,
    code: int,
    make_codec: Callable[..., FactorizedPrior],
    save_codec: Callable[..., Path],
    shards: Path,
    run: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    path = save_codec(model=make_codec(gain=3000.0))
    outcome = run("--checkpoint", path, "--shards", shards, "--strict", strict, "--direct", "on")
    assert "val shards (" in caplog.text and "--direct on; up to" in caplog.text
    assert outcome.code == code
    assert outcome.summary[0]["bpp_real"] > 0
    assert "latents have left the density" in caplog.text and "--train_scope replaced+hyper" in caplog.text


@pytest.mark.parametrize(
    ("tampered", "said"),
    [
        ("unpack", "decoding gave other symbols"),
        ("synthesise", "not the model's own reconstruction"),
        ("code_length_bits", "under the stored tables"),
        ("pack", "the stream just written cannot be read"),
    ],
)
def test_an_inexact_codec_ends_the_run_naming_the_image(
    tampered: str,
    said: str,
    save_codec: Callable[..., Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = TorchCodec if tampered == "synthesise" else round_trip
    honest = getattr(place, tampered)

    def other_symbols(*args: Any) -> Any:
        stream = honest(*args)
        stream.symbols[-1, -1, -1] += 1
        return stream

    wrongly = {
        "unpack": other_symbols,
        "synthesise": lambda *args: honest(*args) * 1.00001,
        "code_length_bits": lambda *args: honest(*args) * 1.5 + 100,
        "pack": lambda *args: honest(*args)[:-1] + b"x",
    }
    monkeypatch.setattr(place, tampered, wrongly[tampered])
    from evaluate.run import main

    argv = ["--checkpoint", str(save_codec()), "--images", str(folder), "--out", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--workers", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate/run.py: error: codec, a.png: ") and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["not one", "not finite", "other tensors", "bad image"])
def test_a_wrong_codec_is_refused_and_a_bad_image_fails_in_one_line(
    kind: str,
    make_codec: Callable[..., FactorizedPrior],
    save_codec: Callable[..., Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, named, code = tmp_path / "codec.pt", "codec.pt", 2
    model = make_codec()
    if kind == "not one":
        checkpoint.write_bytes(b"not a checkpoint")
    elif kind == "not finite":
        torch.nn.init.constant_(model.g_a[0].bias, float("nan"))
        save_codec(model=model)
    elif kind == "other tensors":
        save_codec(model=make_codec("all"), replaced="none")
    else:
        save_codec()
        (folder / "c.jpg").write_bytes(b"not an image")
        named, code = "c.jpg", 1
    from evaluate.run import main

    argv = ["--checkpoint", str(checkpoint), "--images", str(folder), "--out", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("evaluate/run.py: error: ") and named in lines[-1]
    assert not (tmp_path / "out").exists()


def test_two_processes_give_what_one_gives(
    save_codec: Callable[..., Path], folder: Path, run: Callable[..., Any]
) -> None:
    path = save_codec()
    alone = run("--checkpoint", path, "--images", folder, "--recon_count", 3, out="alone")
    script = Path(__file__).parents[2] / "evaluate" / "run.py"
    together = alone._replace(out=alone.out.with_name("together"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += ["--checkpoint", str(path), "--images", str(folder), "--recon_count", "3", "--out", str(together.out)]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=110, cwd="/")
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(alone.rows, together.rows, strict=True):
        for name in ("name", "width", "height", "file_bytes", "bpp_real"):
            assert mine[name] == theirs[name]
        for name in ("psnr_db", "bpp_estimated"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-6)
    assert together.summary[0]["num_images"] == 4
    assert done.stdout.count("codec  ") == 1
    for part in ("origin", "codec"):
        assert sorted(path.name for path in (together.out / part).iterdir()) == ["000.png", "001.png", "002.png"]


def test_names_with_dollars_or_bytes_that_are_no_text(
    save_codec: Callable[..., Path], make_image: Callable[..., Any], run: Callable[..., Any], tmp_path: Path
) -> None:
    """Plots read text between two dollar signs as mathematics, and tables are UTF-8."""
    named = tmp_path / "cost_$5_and_$6.pt"
    save_codec().rename(named)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(make_image(32, 16, 1)).save(images / "plain.png")
    os.rename(images / "plain.png", os.fsencode(images) + b"/\xff.png")
    outcome = run("--checkpoint", named, "--images", images, "--references", "false")
    assert outcome.code == 0 and outcome.summary[0]["label"] == "cost_$5_and_$6"
    assert [row["name"] for row in outcome.rows] == ["\\xff.png"]
    assert "cost_$5_and_$6" in (outcome.out / "report.html").read_text()


@pytest.mark.parametrize("flags", [["--checkpoint", "no.pt"], ["--checkpoint", "no.pt", "--strict", "--nothing"]])
def test_a_wrong_command_line_is_one_line_and_code_2(
    flags: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluate.run import main

    try:
        code: object = main([*flags, "--images", str(folder)])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith("evaluate/run.py: error: ")


def test_two_checkpoints_of_one_name_and_a_list_in_a_yaml_file(
    save_codec: Callable[..., Path], shards: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = save_codec("a/last.pt"), save_codec("b/last.pt", replaced="all")
    config = tmp_path / "run.yaml"
    config.write_text(f"checkpoint: [{first}, {second}]\nshards: {shards}\nrecon_count: 1\nbitstream: false\n")
    outcome = run("--config", config)
    assert outcome.code == 0
    assert [(entry["label"], entry["checkpoint"]) for entry in outcome.summary] == [
        ("a-last", str(first)),
        ("b-last", str(second)),
    ]
    for name in ("origin", "a-last", "b-last"):
        assert [path.name for path in (outcome.out / name).iterdir()] == ["000.png"]


def test_contexts_change_the_rate_alone(folder: Path, run: Callable[..., Any]) -> None:
    (folder / "a.png").unlink()  # one pixel is too small to gain anything
    outcomes = {
        value: run(
            "--checkpoint", "embedded", "--images", folder, "--contexts", value, "--references", "false", out=value
        )
        for value in ("true", "false")
    }
    assert [one.code for one in outcomes.values()] == [0, 0]
    for new, old in zip(outcomes["true"].rows, outcomes["false"].rows, strict=True):
        pixels = int(new["width"]) * int(new["height"])
        same = {"name", "psnr_db", "bpp_estimated", "bpp_without_contexts"}
        assert {key: new[key] for key in same} == {key: old[key] for key in same}
        assert old["bpp_tables"] == old["bpp_without_contexts"]
        for row in (new, old):
            payload_bits = float(row["bpp_real"]) * pixels
            assert 32 <= payload_bits - float(row["bpp_tables"]) * pixels <= 66
            assert int(row["file_bytes"]) == round(payload_bits / 8) + 40
    means, plain = (outcomes[value].summary[0] for value in ("true", "false"))
    assert means["bpp_real"] < plain["bpp_real"]
    assert means["bpp_without_contexts"] == pytest.approx(plain["bpp_tables"])
    assert not outcomes["true"].stdout.count("warning")
