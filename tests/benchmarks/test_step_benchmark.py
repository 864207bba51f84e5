"""The step benchmark compares steps with equal results, and names its figures."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks._train_step.steps import bare_step, our_step, synchronous_step
from benchmarks.train_step import main
from relic.cli import parse
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from tests.train.runs import tiny
from train.build import build_learner
from train.config import TrainConfig
from train.plan import make_plan
from train.start import load_start


def test_the_three_steps_move_the_same_weights_alike(crops: Path, tmp_path: Path) -> None:
    flags = [*tiny(crops, tmp_path), "--precondition", "false", "--lr_warmup_steps", "0"]
    config = parse(TrainConfig, flags, prog="train")
    world = World(0, 1, torch.device("cpu"))
    batch = DeviceBatch(torch.rand(4, 3, 176, 176, generator=torch.Generator().manual_seed(1)), list("abcd"))
    moved = []
    for make in (
        lambda each: our_step(each, config, world),
        lambda each: bare_step(each, config),
        lambda each: synchronous_step(each, config),
    ):
        torch.manual_seed(0)
        plan = make_plan(config)
        learner = build_learner(plan, world, load_start(plan, world, None))
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        make(learner)(batch)
        moved.append([after.detach() - old for after, old in zip(learner.model.parameters(), before, strict=True)])
    assert any(change.abs().max() > 1e-4 for change in moved[0])
    for others in moved[1:]:
        for ours, theirs in zip(moved[0], others, strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5)


def test_the_benchmark_names_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    flags = ["--channels", "4,6", "--batch_size", "1", "--rounds", "1", "--loop_steps", "4", "--json", str(file)]
    assert main(flags) == 0
    found = json.loads(file.read_text())
    assert found["ours_ms"] > 0 and found["bare_ms"] > 0 and found["synchronous_ms"] > 0
    assert found["ratios"]["ours/bare"] == pytest.approx(found["ours_ms"] / found["bare_ms"])  # of one round
    assert found["ratios"]["synchronous/ours"] == pytest.approx(found["synchronous_ms"] / found["ours_ms"])
    assert found["loop_overhead_ms"] > 0 and found["loop_steps"] >= 4
    assert found["settings"]["channels"] == "4,6" and found["machine"]["torch"]
    assert "the loop around a step" in capsys.readouterr().out
