"""A compiled model trains, resumes and is exported like any other."""

from pathlib import Path

import pytest

import export.onnx_parts
from tests.train.runs import Killed, Run, assert_equal, stop_after, weights


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
