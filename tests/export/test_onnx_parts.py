"""The exported parts against torch, onnx and each other."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compressai.models import FactorizedPrior, FactorizedPriorReLU

from export.onnx_parts import main
from relic import __version__
from relic.arrays import Floats
from relic.bitstream.tables import Tables
from relic.codec.checkpoint import load_checkpoint, save_checkpoint
from relic.options import Parts
from tests.export.conftest import HEIGHT, WIDTH, MakeCheckpoint, MakeExport, as_batch, smooth_image, tiny_codec

ROOT = Path(__file__).resolve().parents[2]
ALL_PARTS = get_args(Parts)


def run(path: Path, values: Floats) -> Floats:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: values})
    values_out: Floats = output
    return values_out


def export(checkpoint: Path, part: str, out: Path, *flags: str) -> int:
    return main(["--ckpt", str(checkpoint), "--part", part, "--out", str(out), *flags])


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("replaced", ALL_PARTS)
def test_every_part_computes_what_torch_computes(
    replaced: Parts, make_export: MakeExport, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_export(replaced), load_checkpoint(make_checkpoint(replaced)).build()
    medians = Tables.load(folder / "tables.npz").medians[:, None, None]
    for seed in range(3):
        x = as_batch(smooth_image(HEIGHT, WIDTH, seed + 10))
        with torch.inference_mode():
            y = model.g_a(torch.from_numpy(x))
            expected = model(torch.from_numpy(x))["x_hat"].clamp(0, 1).numpy()
        found = run(folder / "encoder.onnx", x)
        assert found.std() > 2, "latents that all round to 0 would prove nothing"
        np.testing.assert_allclose(found, y.numpy(), rtol=0, atol=1e-4)
        y_hat = np.rint(found - medians) + medians
        x_hat = run(folder / "decoder.onnx", y_hat)
        np.testing.assert_allclose(x_hat, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(run(folder / "full.onnx", x), x_hat, rtol=0, atol=1e-4)


@pytest.mark.parametrize("replaced", ALL_PARTS)
def test_the_manifest_tells_the_truth(replaced: Parts, make_export: MakeExport) -> None:
    folder = make_export(replaced)
    assert sorted(path.name for path in folder.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "export.json", "full.onnx", "tables.npz",
    ]  # fmt: skip
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["architecture"] == {"name": "bmshj2018_factorized", "channels": [8, 12], "replaced": replaced}
    assert manifest["checkpoint"]["metrics"] == {"psnr_db": 30.0}
    assert manifest["relic_version"] == __version__
    assert manifest["tables"]["digest"] == Tables.load(folder / "tables.npz").digest
    for entry in (*manifest["parts"].values(), manifest["tables"]):
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    image, latent = [1, 3, HEIGHT, WIDTH], [1, 12, HEIGHT // 16, WIDTH // 16]
    shapes = {"encoder": (image, latent), "decoder": (latent, image), "full": (image, image)}
    for part, entry in manifest["parts"].items():
        assert (entry["input"]["shape"], entry["output"]["shape"]) == shapes[part]
        assert entry["parity"]["error"] <= entry["parity"]["tolerance"] == 1e-4


@pytest.mark.parametrize("replaced", ALL_PARTS)
def test_files_are_static_opset_13_and_describe_themselves(replaced: Parts, make_export: MakeExport) -> None:
    folder = make_export(replaced)
    for part, fed, given in (("encoder", "x", "y"), ("decoder", "y_hat", "x_hat"), ("full", "x", "x_hat")):
        model = onnx.load(folder / f"{part}.onnx")
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
        assert ([value.name for value in model.graph.input], [value.name for value in model.graph.output]) == (
            [fed], [given],
        )  # fmt: skip
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        assert all(size.dim_value > 0 for value in values for size in value.type.tensor_type.shape.dim)
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert about["relic.part"] == part
        assert json.loads(about["relic.input"])["name"] == fed
        image = json.loads(about["relic.output" if given == "x_hat" else "relic.input"])
        assert image["range"] == [0, 1]
        latent_range = json.loads(about["relic.output" if part == "encoder" else "relic.input"])["range"]
        assert part == "full" or latent_range[0] < -2 < 2 < latent_range[1]
        assert about["relic.tables"] == Tables.load(folder / "tables.npz").digest


def test_a_swapped_encoder_is_four_convolutions_and_three_relus(make_export: MakeExport) -> None:
    assert kinds(make_export("all") / "encoder.onnx") == ["Conv", "Relu", "Conv", "Relu", "Conv", "Relu", "Conv"]
    assert kinds(make_export("encoder") / "encoder.onnx") == kinds(make_export("all") / "encoder.onnx")


@pytest.mark.parametrize("replaced", ALL_PARTS)
def test_what_npus_lack_stays_on_the_host(replaced: Parts, make_export: MakeExport) -> None:
    gdn = {"Mul", "Sqrt", "Div", "Conv"}
    encoder, decoder = (set(kinds(make_export(replaced) / f"{part}.onnx")) for part in ("encoder", "decoder"))
    assert encoder <= {"Conv", "Relu"} | (gdn if replaced in ("none", "decoder") else set())
    assert decoder <= {"Conv", "DepthToSpace", "Relu", "Clip"} | (gdn if replaced in ("none", "encoder") else set())


def test_one_export_serves_all_sizes(make_export: MakeExport, make_checkpoint: MakeCheckpoint) -> None:
    folder, model = make_export("none", dynamic=True), load_checkpoint(make_checkpoint("none")).build()
    for batch, height, width in ((1, 16, 16), (2, 48, 32), (3, 160, 96)):
        x = as_batch(*(smooth_image(height, width, seed) for seed in range(batch)))
        with torch.inference_mode():
            y, x_hat = model.g_a(torch.from_numpy(x)).numpy(), model(torch.from_numpy(x))["x_hat"].clamp(0, 1).numpy()
        np.testing.assert_allclose(run(folder / "encoder.onnx", x), y, rtol=0, atol=1e-4)
        np.testing.assert_allclose(run(folder / "full.onnx", x), x_hat, rtol=0, atol=1e-4)
    assert json.loads((folder / "export.json").read_text())["parts"]["decoder"]["input"]["shape"] == [
        "batch", 12, "latent_height", "latent_width",
    ]  # fmt: skip


@pytest.mark.parametrize("opset", [11, 20])
def test_the_opset_asked_for_is_the_one_in_the_file(
    opset: int, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    assert export(make_checkpoint("none"), "full", tmp_path / "f.onnx", "--opset", str(opset)) == 0
    assert [entry.version for entry in onnx.load(tmp_path / "f.onnx").opset_import] == [opset]
    assert [path.name for path in tmp_path.iterdir()] == ["f.onnx"]


def test_an_export_is_checked_on_crops(
    tmp_path: Path, crops: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shards", str(crops), "--batch", "2", "--input_size", "192"]
    assert export(make_checkpoint(), "encoder", tmp_path / "e.onnx", *flags) == 0
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "e.onnx").metadata_props}
    assert json.loads(about["relic.parity"])["checked_on"] == "6 val crops"
    assert json.loads(about["relic.input"])["shape"] == [2, 3, 192, 192]
    assert "e.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(("loss_type", "solved"), [("rd", True), ("recon", False)])
def test_quantiles_are_solved_where_the_entropy_model_was_trained(loss_type: str, solved: bool, tmp_path: Path) -> None:
    checkpoint = tiny_codec("all")
    own = checkpoint.model["entropy_bottleneck.quantiles"][:, 0, 1].numpy()
    save_checkpoint(
        tmp_path / "c.pt", checkpoint.__class__(checkpoint.architecture, checkpoint.model, loss_type=loss_type)
    )
    assert export(tmp_path / "c.pt", "all", tmp_path / "out", "--input_size", "32") == 0
    medians = Tables.load(tmp_path / "out" / "tables.npz").medians
    assert np.array_equal(medians, own) is not solved


def _old_name(name: str) -> str:
    """The name in the files that CompressAI released: lists with an underscore, and DataParallel's prefix."""
    for parameters in ("matrices", "biases", "factors"):
        name = name.replace(f"entropy_bottleneck.{parameters}", f"entropy_bottleneck._{parameters}")
    return f"module.{name}"


@pytest.mark.parametrize("in_zoo_s_names", [False, True])
@pytest.mark.parametrize(("codec", "replaced"), [(FactorizedPriorReLU, "all"), (FactorizedPrior, "none")])
def test_compressai_files_are_taken(codec: Any, replaced: str, in_zoo_s_names: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = codec(8, 12)
    model.update()
    state = model.state_dict()
    if in_zoo_s_names:
        state = {_old_name(name): tensor for name, tensor in state.items()}
        assert "module.entropy_bottleneck._matrices.0" in state
    torch.save(state, tmp_path / "zoo.pth.tar")
    flags = ["--replace_parts", replaced, "--input_size", "32"]
    assert export(tmp_path / "zoo.pth.tar", "all", tmp_path / "out", *flags) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["architecture"]["replaced"] == replaced
    x = as_batch(smooth_image(32, 32))
    with torch.inference_mode():
        y = model.g_a(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(tmp_path / "out" / "encoder.onnx", x), y, rtol=0, atol=1e-4)


def _not_a_checkpoint(folder: Path) -> list[str]:
    (folder / "notes.pt").write_text("not a checkpoint")
    return ["--ckpt", str(folder / "notes.pt")]


def _other_version(folder: Path) -> list[str]:
    torch.save({"format": "relic-checkpoint", "version": 99}, folder / "v99.pt")
    return ["--ckpt", str(folder / "v99.pt")]


def _not_finite(folder: Path) -> list[str]:
    checkpoint = tiny_codec("all")
    checkpoint.model["g_a.2.weight"][0] = float("nan")
    save_checkpoint(folder / "nan.pt", checkpoint)
    return ["--ckpt", str(folder / "nan.pt")]


WRONG: list[tuple[Any, str, int]] = [
    (["--ckpt", "no/such.pt"], "--ckpt no/such.pt", 2),
    (_not_a_checkpoint, "notes.pt", 2),
    (_other_version, "version 99", 2),
    (_not_finite, "g_a.2.weight", 2),
    (["--replace_parts", "encoder"], "--replace_parts encoder", 2),
    (["--replace_parts", "none"], "--replace_parts none", 2),
    (["--part", "half"], "--part half", 2),
    (["--shards", "no/shards"], "--shards no/shards", 2),
]


@pytest.mark.parametrize(("flags", "message", "code"), WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(
    flags: Any,
    message: str,
    code: int,
    tmp_path: Path,
    make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--ckpt", str(make_checkpoint("all")), "--part", "all", "--out", "out"]
    arguments += flags(tmp_path) if callable(flags) else flags
    before = sorted(tmp_path.rglob("*"))
    try:
        found = main(arguments)
    except SystemExit as exit_:
        found = int(str(exit_.code))
    error = capsys.readouterr().err
    assert (found, error.count("\n")) == (code, 1), error
    assert error.startswith("export/onnx_parts.py: error: ")
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_refuses_files_is_one_line(
    make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid():
        pytest.skip("only root may write to every folder")
    assert export(make_checkpoint("all"), "all", Path("/proc/relic"), "--input_size", "32") == 2
    assert "--out /proc/relic: " in capsys.readouterr().err


def test_a_part_that_differs_from_torch_is_not_written(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(make_checkpoint("all"), "all", tmp_path, "--input_size", "32") == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr("export.parity.TOLERANCE", 1e-12)
    assert export(make_checkpoint("none"), "all", tmp_path, "--input_size", "32") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "differs from torch" in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_help_and_wrong_flags_need_no_torch(tmp_path: Path) -> None:
    program = [sys.executable, "-X", "importtime", str(ROOT / "export" / "onnx_parts.py")]
    for flags, code in ((["--help"], 0), (["--ckpt", "x.pt", "--part", "all", "--out", "out"], 2)):
        done = subprocess.run([*program, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
        assert done.returncode == code, done.stderr
        assert "relic.cli" in imported
        assert not {"torch", "compressai", "onnx", "onnxruntime"} & imported
