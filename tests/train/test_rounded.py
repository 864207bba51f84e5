"""--rounded_epochs: the encoder stays, decoder and entropy bottleneck learn from rounded latents, and runs resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from relic.codec.checkpoint import load_checkpoint
from relic.codec.pretrained import finished_model
from relic.errors import InputError
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, weights
from train.config import TrainConfig
from train.learner import Learner

ROUNDED = ("--epochs", "3", "--rounded_epochs", "2")
"""3 steps with noise, 6 rounded ones."""


@pytest.mark.parametrize("precondition", ["true", "false"])
@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_the_encoder_stays_and_the_rest_moves(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, precondition: str
) -> None:
    flags = (*ROUNDED, "--optimizer", optimizer, "--precondition", precondition)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(*flags)
    border = weights(tmp_path)
    assert run(*flags, "--resume", "auto") == 0
    end = weights(tmp_path)
    changed = {name for name in end if not torch.equal(border[name], end[name])}
    assert not any(name.startswith("g_a.") or name.endswith("quantiles") for name in changed)
    # The latents of this untrained codec round to zero. So not every kernel has a gradient.
    assert {"g_s.0.bias", "g_s.2.weight", "g_s.4.weight", "g_s.6.bias", "entropy_bottleneck.matrices.0"} <= changed


def test_the_decoder_gets_rounded_latents_and_the_rate_is_theirs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against CompressAI's own likelihood."""
    rounded, step = [], Learner.step

    def watched(self: Learner, batch: Any, number: int) -> Any:
        latents: list[Tensor] = []
        hook = self.model.g_s.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0].detach()))
        bottleneck = self.model.entropy_bottleneck
        medians = bottleneck.quantiles[:, 0, 1].detach().clone()
        with torch.no_grad():
            symbols = torch.round(self.model.g_a(batch.images) - medians[:, None, None])
            values = (symbols + medians[:, None, None]).transpose(0, 1).flatten(1)[:, None]
            likelihood = bottleneck._likelihood(values)[0].clamp(min=1e-9)
        values = step(self, batch, number)
        hook.remove()
        rounded.append(bool(torch.equal(latents[0], symbols + medians[:, None, None])))
        if rounded[-1]:
            pixels = batch.images.numel() / 3
            assert float(values.loss.bpp) == pytest.approx(float(-likelihood.log2().sum()) / pixels, rel=1e-5)
        return values

    monkeypatch.setattr(Learner, "step", watched)
    assert run(*ROUNDED) == 0
    assert rounded == [False] * 3 + [True] * 6


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_run_resumes_bit_for_bit_on_both_sides_of_the_border(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The run that is cut saves after each step, the whole one only after each epoch. Saving must change nothing."""
    assert run(*ROUNDED, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Killed):
            run(*ROUNDED, "--save_every_steps", "1", folder=tmp_path / "cut")
    assert run(*ROUNDED, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert lines(tmp_path / "whole", "validate")[-1]["loss"] == lines(tmp_path / "cut", "validate")[-1]["loss"]


def test_evaluation_rounds_about_the_same_medians(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The density moved since the medians were solved, so solving them again would give others."""
    caplog.set_level("INFO")
    assert run(*ROUNDED, "--lr", "1e-2") == 0
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert checkpoint.config["rounded_epochs"] == 2
    model = finished_model(checkpoint, "last.pt")
    bottleneck = model.entropy_bottleneck
    assert torch.equal(bottleneck.quantiles, checkpoint.model["entropy_bottleneck.quantiles"])
    logits = bottleneck._logits_cumulative(bottleneck.quantiles, stop_gradient=True)[:, 0, 1]
    assert float(logits.detach().abs().max()) > 1e-3
    assert "the last 2 of 3 epochs train decoder and entropy bottleneck on rounded latents" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rounded_epochs": 3, "epochs": 2}, "--rounded_epochs 3: must be --epochs 2 at most"),
        ({"rounded_epochs": 1, "replace_parts": "encoder"}, "--rounded_epochs: trains the decoder; choose"),
        ({"rounded_epochs": 1, "replace_parts": "all", "qat": True}, "--rounded_epochs: does not go with --qat"),
        ({"rounded_epochs": -1}, "--rounded_epochs -1: must be 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainConfig(shards="shards", **flags)
    assert str(refused.value).startswith(message)
    TrainConfig(shards="shards", rounded_epochs=10, replace_parts="encoder", train_scope="all")


def test_a_resumed_run_keeps_their_number(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--epochs", "1", "--rounded_epochs", "1") == 0
    capsys.readouterr()
    assert run("--epochs", "1", "--resume", "auto") == 2
    assert "--rounded_epochs 0: the run to resume has 1" in capsys.readouterr().err
