"""Resumed runs: after a kill at the end of an epoch, in another folder, with other flags, on other ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior

import train.trainer
import train.validation
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, tiny, weights
from tests.train.test_processes import ROOT
from tests.train.test_processes import start as begin

EACH = ("--log_every", "1", "--save_every_steps", "1")


def test_a_kill_while_an_epoch_is_validated_costs_no_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--log_every", "1", folder=tmp_path / "whole") == 0
    validate, calls = train.validation.validate, []

    def cut(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:  # the first is before training
            raise Killed
        return validate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(train.trainer, "validate", cut)
        with pytest.raises(Killed):
            run("--log_every", "1", folder=tmp_path / "cut")
    stop_after(monkeypatch, 99)
    assert run("--log_every", "1", "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut_run = (lines(tmp_path / name, "train") for name in ("whole", "cut"))
    assert [line["step"] for line in cut_run] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in cut_run] == [line["loss"] for line in whole]
    assert lines(tmp_path / "cut", "validate")[1:] == lines(tmp_path / "whole", "validate")[1:]


def test_a_kill_after_saving_loses_no_validation(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*EACH, "--validate_every_steps", "1")
    assert run(*flags, folder=tmp_path / "whole") == 0
    for killed_at in (2, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, killed_at)
            with pytest.raises(Killed):
                run(*flags, "--resume", "auto", folder=tmp_path / "cut")
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert lines(tmp_path / "cut", "validate") == lines(tmp_path / "whole", "validate")


def test_a_run_that_goes_on_in_another_folder_takes_nothing_else_along(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*EACH, folder=tmp_path / "whole") == 0
    assert run("--epochs", "1", "--seed", "5", folder=tmp_path / "next") == 0  # the folder holds another run
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*EACH, folder=tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    assert run(*EACH, "--resume", str(last), "--overwrite", folder=tmp_path / "next") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "next"))
    assert [line["step"] for line in lines(tmp_path / "next", "train")] == [5, 6]
    best = torch.load(tmp_path / "next" / "checkpoints" / "best_loss.pt", weights_only=True)
    assert best["config"]["seed"] == 0
    assert best["metrics"]["loss"] == lines(tmp_path / "next", "validate")[-1]["loss"]


def test_flags_that_a_resumed_run_may_change_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example from no mixed precision to fp16, whose scaler is not in the checkpoint."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(*EACH)
    caplog.set_level("INFO")
    changed = ("--amp", "true", "--max_grad_norm", "0.5")
    assert run(*EACH, *changed, "--resume", "auto") == 0
    said = [record.getMessage() for record in caplog.records if "the run had" in record.getMessage()]
    assert said == [
        "resuming with --amp True; the run had auto",
        "resuming with --max_grad_norm 0.5; the run had 1.0",
    ]
    # A step that the scaler skips has no finite norm. It is left out, since JSON has no NaN.
    text = (tmp_path / "checkpoints" / "metrics.jsonl").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert [json.loads(line)["step"] for line in text.splitlines() if '"train"' in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("distill", "code"), [(0.0, 0), (0.3, 2)])
def test_a_checkpoint_that_still_names_distill_resumes_where_it_was_off(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], distill: float, code: int
) -> None:
    assert run("--epochs", "1") == 0
    last = tmp_path / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["config"]["distill"] = distill
    torch.save(content, last)
    assert run("--epochs", "1", "--resume", "auto") == code
    assert ("was trained with --distill 0.3, which was removed" in capsys.readouterr().err) == bool(code)


def test_a_damaged_config_beside_the_checkpoint_is_no_loss(run: Run, tmp_path: Path) -> None:
    assert run("--epochs", "1") == 0
    (tmp_path / "checkpoints" / "config.yaml").write_text("lr: [1e-3\n\t")
    assert run("--epochs", "1", "--resume", "auto") == 0


def test_validation_runs_without_tf32(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = FactorizedPrior.forward

    def watched(self: FactorizedPrior, x: torch.Tensor) -> Any:
        if not self.training:
            seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, x)

    monkeypatch.setattr(FactorizedPrior, "forward", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert run("--epochs", "0", "--recon_every", "1", "--recon_count", "2") == 0
    assert len(seen) >= 3 and not any(seen)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_that_find_different_runs_say_so_at_once(run: Run, crops: Path, tmp_path: Path) -> None:
    """As on two machines with separate --save_dir folders."""
    assert run("--epochs", "1", folder=tmp_path / "0") == 0
    script = tmp_path / "own_folder.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom train.main import main\n"
        "sys.exit(main([word.replace('RANK', os.environ['RANK']) for word in sys.argv[1:]]))\n"
    )
    process = begin(str(script), tiny(crops, tmp_path / "RANK", "--epochs", "1", "--resume", "auto"), 2)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "processes found runs at steps [0, 3] there; give a folder that all machines share" in error
