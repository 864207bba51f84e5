"""A compiled model trains, resumes and is exported like any other."""

from pathlib import Path
from typing import Any

import pytest
import torch

import export.onnx_parts
from relic.cli import parse
from relic.codec.loss import loss_formula
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from tests.train.runs import Killed, Run, assert_equal, stop_after, tiny, weights
from train.build import build_learner
from train.config import TrainConfig
from train.plan import make_plan
from train.start import load_start


def test_codec_and_loss_are_compiled(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_(function: Any) -> Any:
        def call(*given: Any) -> Any:
            calls.append(function)
            return function(*given)

        compiled.append(function)
        return call

    calls: list[object] = []
    monkeypatch.setattr(torch, "compile", compile_)
    plan = make_plan(parse(TrainConfig, tiny(crops, tmp_path, "--compile"), prog="train"))
    world = World(0, 1, torch.device("cpu"))
    learner = build_learner(plan, world, load_start(plan, world, None))
    learner.step(DeviceBatch(torch.rand(1, 3, 176, 176), ["a"]), 0)
    assert compiled == calls == [learner.model, loss_formula]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_resumes_and_exports(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--compile", "--save_every_steps", "1")
    assert run(*flags, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    assert export.onnx_parts.main(["--ckpt", str(last), "--part", "all", "--out", str(tmp_path / "onnx")]) == 0
