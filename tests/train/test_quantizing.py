"""--qat: what is learnt, what the checkpoint holds, and that a resumed run is the same."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.ao.quantization import MovingAverageMinMaxObserver

from relic.codec.checkpoint import load_checkpoint
from relic.codec.model import Architecture, build_model
from relic.quantization.fake import FakeQuantization
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, weights
from train.learner import Learner

RELUS = ["g_a.1", "g_a.3", "g_a.5", "g_s.1", "g_s.3", "g_s.5"]
GOOD = dict.fromkeys(RELUS, 1.0)
EACH = ("--qat", "true", "--log_every", "1", "--save_every_steps", "1")


def steps(folder: Path, name: str = "last.pt") -> dict[str, float]:
    quantization = load_checkpoint(folder / "checkpoints" / name).quantization
    assert quantization is not None
    found: dict[str, float] = quantization["activation_steps"]
    return found


def test_a_killed_run_goes_on_with_the_same_bits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*EACH, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*EACH, folder=tmp_path / "cut")
    assert run(*EACH, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert steps(tmp_path / "whole") == steps(tmp_path / "cut")
    assert [line["loss"] for line in lines(tmp_path / "cut", "train")] == [
        line["loss"] for line in lines(tmp_path / "whole", "train")
    ]


def test_steps_are_measured_then_learnt_then_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps. In the last one the weights move and the steps of activations do not."""
    step, seen = Learner.step, []

    def watched(self: Learner, *given: Any) -> Any:
        values = step(self, *given)
        assert self.quantizing is not None
        seen.append((self.quantizing.fake.activation_steps, self.model.g_a[0].weight.detach().clone()))
        return values

    monkeypatch.setattr(Learner, "step", watched)
    assert run("--qat", "true", "--epochs", "5", "--batch_size", "6", "--lr_warmup_steps", "0", folder=tmp_path) == 0
    assert len(seen) == 10 and list(seen[0][0]) == RELUS
    for (before, weights_before), (after, weights_after) in itertools.pairwise(seen[:9]):
        assert before != after  # not every one: some ReLUs of this tiny codec have hardly a gradient
        assert not torch.equal(weights_before, weights_after)
    assert seen[8][0] == seen[9][0] == steps(tmp_path)
    assert not torch.equal(seen[8][1], seen[9][1])


@pytest.mark.parametrize(("ranges", "reduce_range"), [("moving_average", False), ("drpai", True)])
def test_ranges_can_follow_the_largest_values(
    ranges: str, reduce_range: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's observer with the settings of DRP-AI's sample: 0.99 of the range, 0.01 of the largest value."""
    observer_class: Any = MovingAverageMinMaxObserver  # torch does not declare its types
    step, seen, largest = Learner.step, [], []

    def watched(self: Learner, *given: Any) -> Any:
        assert self.quantizing is not None
        hook = self.model.g_a[0].register_forward_hook(lambda _, inputs, output: largest.append(output.max().item()))
        seen.append(self.quantizing.fake.activation_steps["g_a.1"])
        values = step(self, *given)
        hook.remove()
        seen.append(self.quantizing.fake.activation_steps["g_a.1"])
        return values

    monkeypatch.setattr(Learner, "step", watched)
    flags = ("--qat", "true", "--qat_ranges", ranges, "--epochs", "1", "--batch_size", "6")
    assert run(*flags, folder=tmp_path) == 0
    assert len(seen) == 4 and len(largest) == 2
    for before, after, value in zip(seen[::2], seen[1::2], largest, strict=True):
        observer: Any = observer_class(quant_min=0, quant_max=255, reduce_range=reduce_range)
        observer(torch.tensor([0.0, value]))
        assert after == pytest.approx(0.99 * before + 0.01 * observer.calculate_qparams()[0].item(), rel=1e-5)
        assert after != before


def test_the_first_ranges_of_drp_ai_end_at_level_127(run: Run, tmp_path: Path) -> None:
    for ranges in ("moving_average", "drpai"):
        assert run("--qat", "true", "--qat_ranges", ranges, "--epochs", "0", folder=tmp_path / ranges) == 0
    usual, theirs = (steps(tmp_path / ranges) for ranges in ("moving_average", "drpai"))
    assert theirs["g_a.1"] == pytest.approx(usual["g_a.1"] * 255 / 127)


def test_the_step_of_a_relu_that_gives_0_has_an_end() -> None:
    fake = FakeQuantization(build_model(Architecture((4, 6), "all")), by_phase=False, momentum=0.5)
    fake.attach()
    fake.set_ranges(dict.fromkeys(RELUS, 0.0))
    with torch.no_grad():
        for _ in range(200):
            fake.model.g_a[1](torch.full((1, 4, 8, 8), -1.0))
    assert fake.activation_steps["g_a.1"] == pytest.approx(1e-12, rel=1e-5, abs=0)


def test_the_log_says_what_is_rounded(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run(*EACH, "--epochs", "5", "--batch_size", "6", "--replace_parts", "encoder", folder=tmp_path) == 0
    assert "INT8 in 4 layers, for --upsample subpixel; ranges (learned) stay from step 10 on" in caplog.text


def test_the_weights_are_those_of_other_roundings(run: Run, tmp_path: Path) -> None:
    assert run(*EACH, "--epochs", "1", folder=tmp_path / "qat") == 0
    assert run(*EACH[2:], "--epochs", "1", folder=tmp_path / "float") == 0
    first, other = (lines(tmp_path / name, "train")[0]["loss"] for name in ("qat", "float"))
    assert first != other and first == pytest.approx(other, rel=0.05)
    assert load_checkpoint(tmp_path / "float" / "checkpoints" / "last.pt").quantization is None


def test_a_run_with_odd_steps_is_not_continued(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--qat", "true", "--epochs", "1")
    assert run(*flags, folder=tmp_path) == 0
    path = tmp_path / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    good = content["training"]["quantizing"]
    for wrong in (None, {}, {**good, "g_a.1": torch.ones(2)}, {**good, "g_a.1": torch.tensor([torch.nan])}):
        torch.save({**content, "training": {**content["training"], "quantizing": wrong}}, path)
        assert run(*flags, "--resume", "auto", folder=tmp_path) != 0
        assert "last.pt: not a whole checkpoint (quantizing" in capsys.readouterr().err


def test_parts_with_gdn_have_no_steps(run: Run, tmp_path: Path) -> None:
    assert run(*EACH, "--epochs", "1", "--replace_parts", "encoder", folder=tmp_path) == 0
    assert list(steps(tmp_path)) == RELUS[:3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"upsample": "deconv5"}, "does not hold"),
        ({"upsample": "cubic", "activation_steps": {}}, "upsample"),
        ({"upsample": "deconv5", "activation_steps": {**GOOD, "g_a.2": 1.0}}, "no dict of g_a.1, g_a.3"),
        ({"upsample": "deconv5", "activation_steps": {"g_a.1": 1.0}}, "no dict of g_a.1, g_a.3"),
        ({"upsample": "deconv5", "activation_steps": dict(reversed(GOOD.items()))}, "no dict of g_a.1, g_a.3"),
        ({"upsample": "deconv5", "activation_steps": {**GOOD, "g_a.1": 0.0}}, "the step of g_a.1"),
        ({"upsample": "deconv5", "activation_steps": {**GOOD, "g_a.1": 1e-60}}, "the step of g_a.1"),
        ({"upsample": "deconv5", "activation_steps": {**GOOD, "g_a.1": 1e60}}, "the step of g_a.1"),
        ({"upsample": "deconv5", "activation_steps": {**GOOD, "g_a.1": torch.ones(1)}}, "the step of g_a.1"),
    ],
)
def test_a_checkpoint_with_odd_steps_is_refused(wrong: object, message: str, run: Run, tmp_path: Path) -> None:
    assert run("--epochs", "0", folder=tmp_path) == 0
    path = tmp_path / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "quantization": wrong}, path)
    with pytest.raises(Exception, match=message):
        load_checkpoint(path)
