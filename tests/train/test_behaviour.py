"""Special cases of a run: full disks and GPUs, tables, PNGs, compiled models, hard inputs, every scope."""

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import export.onnx_parts
import train.learner
from relic.codec import entropy
from relic.codec.checkpoint import load_checkpoint
from relic.codec.loss import LossConfig, compute_loss
from relic.codec.model import Architecture, build_model, replace_gdn_with_relu
from relic.codec.pretrained import load_codec
from tests.train.conftest import Run
from train.learner import Learner

PREFIXES = {"encoder": {"g_a"}, "decoder": {"g_s"}, "all": {"g_a", "g_s"}}
MADE_OF_THE_DENSITY = {
    f"entropy_bottleneck.{name}" for name in ("quantiles", "_offset", "_quantized_cdf", "_cdf_length")
}


def weights(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / name).model


@pytest.mark.parametrize(
    ("part", "scope", "loss"), itertools.product(PREFIXES, ("replaced", "replaced+hyper", "all"), ("recon", "rd"))
)
def test_three_steps_change_exactly_the_named_tensors(
    run: Run, tmp_path: Path, part: str, scope: str, loss: str
) -> None:
    flags = ("--replace_parts", part, "--train_scope", scope, "--loss_type", loss, "--seed", "1", "--lr", "1e-2")
    assert run(*flags, "--epochs", "0", folder=tmp_path / "before") == 0
    assert run(*flags, "--epochs", "1", folder=tmp_path / "after") == 0
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    changed = {name for name in before if not torch.equal(before[name], after[name])} - MADE_OF_THE_DENSITY
    rooms = {"g_a", "g_s"} if scope == "all" else set(PREFIXES[part])
    if loss == "rd" and scope != "replaced":
        rooms.add("entropy_bottleneck")
    named = {name for name in before if name.split(".")[0] in rooms} - MADE_OF_THE_DENSITY
    # The constants of GDN and of the likelihood's floor are buffers: in the state dict, never trained.
    named &= {name for name, _ in build_model(Architecture((4, 6), part)).named_parameters()}  # type: ignore[arg-type]
    assert changed == named
    if "entropy_bottleneck" not in rooms:
        assert all(torch.equal(before[name], after[name]) for name in MADE_OF_THE_DENSITY)


@pytest.mark.parametrize("loss_type", ["recon", "rd"])
@pytest.mark.parametrize("picture", ["black", "white", "grey", "noise"])
def test_gradients_right_after_the_swap_are_finite_and_there(picture: str, loss_type: Any) -> None:
    model = load_codec("embedded", quality=1, channels=None).build()
    replace_gdn_with_relu(model, "all")
    torch.manual_seed(0)
    level = {"black": 0.0, "white": 1.0, "grey": 0.5, "noise": 0.0}[picture]
    x = torch.rand(2, 3, 176, 176) if picture == "noise" else torch.full((2, 3, 176, 176), level)
    output = model.train()(x)
    loss = compute_loss(x, output["x_hat"], output["likelihoods"]["y"], LossConfig(loss_type, "l1_msssim", 0.4, 0.01))
    loss.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert torch.isfinite(loss.total) and all(torch.isfinite(gradient).all() for gradient in gradients.values())
    for transform in ("g_a", "g_s"):
        assert any(gradient.abs().max() > 0 for name, gradient in gradients.items() if name.startswith(transform))


def test_a_disk_that_fills_while_saving_keeps_the_checkpoint_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--epochs", "1", "--save_every_steps", "1", folder=tmp_path / "whole") == 0
    fsync, saved = os.fsync, []

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith("last.pt.tmp"):
            saved.append(path)
            if len(saved) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run("--epochs", "1", "--save_every_steps", "1", folder=tmp_path / "cut") == 1
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    folder = tmp_path / "cut" / "checkpoints"
    training = load_checkpoint(folder / "last.pt").training
    assert training is not None and training["progress"]["step"] == 1
    assert not list(folder.glob("*.tmp"))
    assert run("--epochs", "1", "--save_every_steps", "1", "--resume", "auto", folder=tmp_path / "cut") == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_a_full_gpu_is_one_line_with_the_ways_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(Learner, "step", full)
    assert run() == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the GPU's memory is full" in said and "--batch_size" in said and "CUDA out of memory" in said


def test_deterministic_tells_cublas_before_cuda_starts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    told = []
    set_algorithms = torch.use_deterministic_algorithms
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda on: told.append((on, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    )
    assert run("--epochs", "0") == 0 and told == []
    assert run("--epochs", "0", "--deterministic", "--overwrite") == 0
    assert told and set(told) == {(True, ":4096:8")} and not torch.cuda.is_initialized()
    assert set_algorithms is not torch.use_deterministic_algorithms


def test_tables_are_made_once_an_epoch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    refresh = entropy.refresh_tables

    def counted(model: Any, *, solve: bool) -> None:
        made.append(solve)
        refresh(model, solve=solve)

    monkeypatch.setattr(train.learner, "refresh_tables", counted)
    assert run("--epochs", "2") == 0
    assert made == [True] * 3  # before the first step and after each epoch, though up to three files are written


def test_pictures_of_a_run_that_made_more_are_removed(run: Run, tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--recon_every", "1")
    assert run(*flags, "--recon_count", "4") == 0
    assert run(*flags, "--recon_count", "2", "--overwrite") == 0
    for folder in ("origin", "pre_e000", "e001"):
        assert sorted(path.name for path in (tmp_path / "recon" / folder).iterdir()) == ["000.png", "001.png"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_resumes_and_exports(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--compile", "--save_every_steps", "1")
    assert run(*flags, folder=tmp_path / "whole") == 0
    step = Learner.step

    class Killed(BaseException):
        pass

    def cut(self: Learner, batch: Any, number: int, epoch: int) -> Any:
        if number == 4:
            raise Killed
        return step(self, batch, number, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", cut)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    assert export.onnx_parts.main(["--ckpt", str(last), "--part", "all", "--out", str(tmp_path / "onnx")]) == 0
