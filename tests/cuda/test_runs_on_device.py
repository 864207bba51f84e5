"""Whole commands on a GPU: training, its failures, evaluation, and processes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evaluate.run import main as evaluate
from relic.codec.checkpoint import load_checkpoint
from tests.cuda.devices import needs_cuda, needs_two_gpus
from tests.train.failing_ranks import FAULTS, fail_alone, printed_alone
from tests.train.runs import assert_equal, lines, tiny, weights
from tests.train.test_processes import ROUNDING, finish, losses_and_gradients, start
from train.main import main as train

ROOT = Path(__file__).resolve().parents[2]
on_cuda = [*needs_cuda, pytest.mark.slow]


def marked(value: Any, marks: list[pytest.MarkDecorator]) -> Any:
    return pytest.param(value, marks=marks)


def run_alone(code: str, argv: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a process of its own, in which CUDA has not started."""
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, timeout=200)


_CUT = """
import os, sys
from train.learner import Learner
from train.main import main
stop, step = int(sys.argv.pop(1)), Learner.step

def step_or_end(self, batch, number):
    if number == stop:
        os._exit(9)
    return step(self, batch, number)

Learner.step = step_or_end
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("dtype", [marked("bf16", on_cuda), marked("fp16", on_cuda)])
def test_a_deterministic_run_repeats_and_resumes_bit_for_bit(dtype: str, crops: Path, tmp_path: Path) -> None:
    """In processes of their own: cuBLAS reads its settings when CUDA starts."""
    flags = ("--device", "cuda", "--deterministic", "--amp", "true", "--amp_dtype", dtype, "--save_every_steps", "1")
    for name, stop, code in (("whole", -1, 0), ("again", -1, 0), ("cut", 4, 9), ("cut", -1, 0)):
        argv = [str(stop), *tiny(crops, tmp_path / name, *flags, "--resume", "auto")]
        done = run_alone(_CUT, argv)
        assert done.returncode == code, done.stderr[-2000:]
    assert "at step 4" in done.stderr
    for name in ("again", "cut"):
        assert_equal(weights(tmp_path / "whole"), weights(tmp_path / name))


@pytest.mark.parametrize("dtype", [marked("fp16", on_cuda)])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_saved_after_it(
    dtype: str, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--device", "cuda", "--amp_dtype", dtype, "--lr", "1e6", "--epochs", "5", "--save_every_steps", "1")
    assert train(tiny(crops, tmp_path, *flags)) == 1
    error = capsys.readouterr().err
    assert "error: " in error and "finite or over" in error and "step " in error
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.pt").model
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values() if tensor.is_floating_point())


_LITTLE_MEMORY = """
import sys, torch
from train.main import main
torch.cuda.set_per_process_memory_fraction(1e-3)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("batch_size", [marked("12", on_cuda)])
def test_a_full_gpu_is_one_line(batch_size: str, crops: Path, tmp_path: Path) -> None:
    flags = ("--device", "cuda", "--channels", "192,320", "--batch_size", batch_size, "--amp", "false")
    done = run_alone(_LITTLE_MEMORY, tiny(crops, tmp_path, *flags))
    assert done.returncode == 1 and "error: the GPU's memory is full" in done.stderr.splitlines()[-1], done.stderr


_STARTED = """
import sys
from train.main import main
code = main(sys.argv[1:])
import torch
print("started" if torch.cuda.is_initialized() else "not started")
sys.exit(code)
"""


@pytest.mark.cuda
@pytest.mark.commands
def test_a_run_on_the_cpu_never_starts_cuda(crops: Path, tmp_path: Path) -> None:
    """Not skipped without a GPU, where it shows only that the test itself works."""
    done = run_alone(_STARTED, tiny(crops, tmp_path, "--epochs", "1"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "not started"), done.stderr[-2000:]


@pytest.mark.parametrize("workers", [marked("0", on_cuda), marked("2", on_cuda)])
def test_the_evaluation_is_exact_and_scores_as_on_the_cpu(workers: str, crops: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        flags = f"--checkpoint embedded --references false --recon_count 0 --device {device} --workers {workers}"
        assert evaluate(["--shards", str(crops), "--out", str(tmp_path / device), *flags.split()]) == 0
        found.append(json.loads((tmp_path / device / "metrics.json").read_text())["summary"][0])
    ours, theirs = found[1], found[0]
    assert ours["psnr_db"] == pytest.approx(theirs["psnr_db"], abs=0.005)
    assert ours["bpp_real"] == pytest.approx(theirs["bpp_real"], rel=2e-3)


@pytest.mark.parametrize("ranks", [marked(1, on_cuda)])
def test_nccl_with_one_rank_saves_stops_and_resumes(ranks: int, crops: Path, tmp_path: Path) -> None:
    script, flags = str(ROOT / "train" / "main.py"), ("--device", "cuda", "--log_every", "1")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    argv = tiny(crops, tmp_path, *flags, "--epochs", "1000")
    process = subprocess.Popen([sys.executable, *launcher, script, *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "checkpoints" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()  # torchrun passes it on
    _, error = process.communicate(timeout=60)
    assert "stopped at step" in error
    step = load_checkpoint(tmp_path / "checkpoints" / "last.pt").training["progress"]["step"]  # type: ignore[index]
    assert step >= 3
    again = tiny(crops, tmp_path, *flags, "--epochs", "1000", "--resume", "auto")
    process = subprocess.Popen([sys.executable, *launcher, script, *again], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(lines(tmp_path, "train")) <= step:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert f"at step {step}" in error and "stopped at step" in error


@pytest.mark.parametrize("ranks", [marked(2, [*needs_two_gpus, pytest.mark.slow])])
def test_two_gpus_train_as_one_does(ranks: int, crops: Path, tmp_path: Path) -> None:
    script = tmp_path / "rounding.py"
    script.write_text(ROUNDING.format(root=str(ROOT)))
    flags = ("--device", "cuda", "--amp", "false", "--log_every", "1", "--epochs", "1", "--lr", "1e-4")
    for count in (1, ranks):
        finish(start(str(script), tiny(crops, tmp_path / str(count), *flags), count))
    assert losses_and_gradients(tmp_path / str(ranks)) == pytest.approx(losses_and_gradients(tmp_path / "1"), rel=1e-3)


@pytest.mark.parametrize("device", [marked("cuda", [*needs_two_gpus, pytest.mark.slow])])
@pytest.mark.parametrize(("failing", "line"), FAULTS)
def test_a_rank_that_fails_alone_ends_both(device: str, tmp_path: Path, failing: str, line: str) -> None:
    code, error = fail_alone(tmp_path, failing, device)
    assert code and printed_alone(error, line), error
