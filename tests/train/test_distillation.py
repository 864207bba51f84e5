"""The extra loss to the GDN codec: what it is, whom its gradient reaches, and that it leaves runs what they were."""

import copy
from pathlib import Path

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from relic.codec.model import Architecture, Parts, build_model, replace_gdn_with_relu
from tests.train.conftest import Run, tiny
from tests.train.test_processes import ROOT, ROUNDING, finish
from tests.train.test_processes import start as begin
from tests.train.test_runs import Killed, assert_equal, lines, stop_after, weights
from train.distillation import Distillation, Observed, relative_error


def pair(parts: Parts, *, swapped: bool = True) -> tuple[Observed, Distillation]:
    torch.manual_seed(0)
    teacher = build_model(Architecture((4, 6), "none"))
    student = copy.deepcopy(teacher)
    if swapped:
        replace_gdn_with_relu(student, parts)
    return Observed(student).train(), Distillation(teacher, parts, weight=0.5, num_steps=10)


def test_the_weight_falls_linearly_to_nothing() -> None:
    _, distillation = pair("all")
    assert [distillation.weight(step) for step in (0, 1, 5, 9, 10)] == pytest.approx([0.5, 0.45, 0.25, 0.05, 0.0])


def test_relative_error_is_that_of_the_textbook() -> None:
    torch.manual_seed(0)
    wanted, values = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    residual = float(((values - wanted) ** 2).mean(dim=(0, 2, 3)).sum())
    variance = float(wanted.transpose(0, 1).flatten(1).var(dim=1, correction=0).sum())
    assert float(relative_error(values, wanted)) == pytest.approx(residual / variance, rel=1e-5)


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_the_gradient_reaches_what_was_swapped_and_no_teacher(parts: Parts) -> None:
    observed, distillation = pair(parts)
    x = torch.rand(2, 3, 64, 64)
    distillation.loss(x, observed(x)).backward()
    reached = {name.split(".")[1] for name, p in observed.named_parameters() if p.grad is not None and p.grad.any()}
    # The decoder's features depend on the latents, so with a trained encoder they teach that too.
    assert reached == {"encoder": {"g_a"}, "decoder": {"g_a", "g_s"}, "all": {"g_a", "g_s"}}[parts]
    assert all(parameter.grad is None for parameter in distillation._teacher.parameters())


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(parts: Parts) -> None:
    observed, distillation = pair(parts, swapped=False)
    x = torch.rand(2, 3, 64, 64)
    assert distillation.loss(x, observed(x)).item() == pytest.approx(0, abs=1e-6)
    biased = observed.model.g_s[2].bias
    with torch.no_grad():
        biased.add_(1)  # a lift alone is no error where the nonlinearity behind it is not looked at
    later = distillation.loss(x, observed(x))
    assert float(later) > 1e-3 if parts != "encoder" else float(later) == pytest.approx(0, abs=1e-6)


def test_an_observed_codec_computes_what_the_codec_does() -> None:
    observed, _ = pair("all")
    x = torch.rand(2, 3, 64, 64)
    for mode in (True, False):
        observed.train(mode)
        torch.manual_seed(5)
        seen = observed(x)
        torch.manual_seed(5)
        plain = observed.model(x)
        assert torch.equal(seen["x_hat"], plain["x_hat"])
        assert torch.equal(seen["likelihoods"]["y"], plain["likelihoods"]["y"])
    assert {name.removeprefix("model.") for name in observed.state_dict()} == observed.model.state_dict().keys()


DISTILLED = ("--swap_init", "calibrated", "--calib_images", "8", "--distill", "0.3", "--log_every", "1")


@pytest.mark.parametrize("parts", ["encoder", "all"])
def test_a_distilled_run_resumes_bit_for_bit_and_saves_no_teacher(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: str
) -> None:
    flags = (*DISTILLED, "--replace_parts", parts, "--save_every_steps", "1", "--sched", "onecycle")
    assert run(*flags, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    # Calibration is not made again: what the checkpoint holds is what goes on.
    monkeypatch.setattr("train.start.swap_calibrated", None)
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut = (lines(tmp_path / name, "train") for name in ("whole", "cut"))
    assert [(line["lr"], line["distance"]) for line in whole] == [(line["lr"], line["distance"]) for line in cut]
    names = set(weights(tmp_path / "whole"))
    architecture = load_checkpoint(tmp_path / "whole" / "checkpoints" / "last.pt").architecture
    assert names == set(build_model(architecture).state_dict())


def test_distillation_changes_the_run_and_its_flags_stay(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tuple("0.0" if flag == "0.3" else flag for flag in DISTILLED)
    for folder, flags in (("with", DISTILLED), ("without", plain)):
        assert run(*flags, "--epochs", "1", folder=tmp_path / folder) == 0
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all("distance" in line for line in lines(tmp_path / "with", "train"))
    assert not any("distance" in line for line in lines(tmp_path / "without", "train"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        run(*plain, "--epochs", "1", "--resume", "auto", folder=tmp_path / "with")
    assert refused.value.code == 2
    assert "--distill 0.0: the run to resume has 0.3" in capsys.readouterr().err


def test_mixed_precision_with_a_decoder_in_fp32(run: Run, tmp_path: Path) -> None:
    islands = ("--amp", "true", "--amp_dtype", "bf16", "--local_fp32", "entropy+decoder")
    assert run(*DISTILLED, *islands, "--epochs", "1") == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_observing_keeps_the_decoder_an_island() -> None:
    observed, _ = pair("all")
    island = Observed(observed.model, decoder_in_fp32=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert observed(torch.rand(1, 3, 64, 64))["x_hat"].dtype == torch.bfloat16
        assert island(torch.rand(1, 3, 64, 64))["x_hat"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_learns_from_a_teacher(run: Run, tmp_path: Path) -> None:
    assert run(*DISTILLED, "--epochs", "1", "--compile", folder=tmp_path / "compiled") == 0
    assert run(*DISTILLED, "--epochs", "1", folder=tmp_path / "eager") == 0
    compiled, eager = (lines(tmp_path / name, "train")[0] for name in ("compiled", "eager"))
    assert compiled["distance"] == pytest.approx(eager["distance"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_calibrate_and_distill_like_one(crops: Path, tmp_path: Path) -> None:
    script = tmp_path / "rounding.py"
    script.write_text(ROUNDING.format(root=str(ROOT)))
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        finish(begin(str(script), tiny(crops, folder, *DISTILLED, "--epochs", "1", "--lr", "1e-4"), count))
        found[count] = lines(folder, "train")
    # Each process takes the relative error of its own half of a batch: nearly, not exactly, that of the whole.
    for one, two in zip(found[1], found[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)
        assert two["distance"] == pytest.approx(one["distance"], rel=0.1)
