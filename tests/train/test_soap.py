"""SOAP: its steps are the formula's, they turn with the gradients, and a run with it resumes bit for bit."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relic.codec.checkpoint import load_checkpoint
from relic.errors import InputError
from tests.train.runs import Killed, Run, assert_equal, stop_after, weights
from train.config import TrainConfig
from train.soap import Soap

SHAPE = (3, 4, 2, 2)
RATE, BETA1, BETA2 = 0.1, 0.9, 0.8


def gradients(steps: int) -> list[Tensor]:
    """Gradients with correlated values, float64."""
    torch.manual_seed(1)
    mixing = torch.randn(48, 48, dtype=torch.float64)
    return [(mixing @ torch.randn(48, dtype=torch.float64)).view(SHAPE) for _ in range(steps)]


def moved(given: list[Tensor], start: Tensor) -> Tensor:
    """A parameter after a step per gradient."""
    parameter = nn.Parameter(start.clone())
    optimizer = Soap([parameter], lr=RATE, betas=(BETA1, BETA2))
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_its_steps_are_adam_s_along_the_eigenvectors_of_the_covariances() -> None:
    """Against one large orthogonal matrix, made with numpy from the covariances of the first gradient."""
    first, *others = gradients(9)
    cube = first.numpy().reshape(3, 4, 4)
    covariances = (
        np.einsum("abc,dbc->ad", cube, cube),
        np.einsum("abc,adc->bd", cube, cube),
        np.einsum("abc,abd->cd", cube, cube),
    )
    rows, columns, taps = (np.linalg.svd(covariance)[0] for covariance in covariances)
    basis = np.kron(np.kron(rows, columns), taps)
    place, average, squares = np.zeros(48), np.zeros(48), np.zeros(48)
    for number, gradient in enumerate(others, 1):
        turned = basis.T @ gradient.numpy().ravel()
        average = BETA1 * average + (1 - BETA1) * turned
        squares = BETA2 * squares + (1 - BETA2) * turned**2
        step = average / (1 - BETA1**number) / (np.sqrt(squares / (1 - BETA2**number)) + 1e-8)
        place = place - RATE * basis @ step
    found = moved([first, *others], torch.zeros(SHAPE, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy().ravel(), place, atol=1e-9)


def test_its_steps_turn_with_the_gradients() -> None:
    """Adam's do not. 35 steps: the bases are updated three times."""
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    given = gradients(35)
    start = torch.zeros(SHAPE, dtype=torch.float64)
    found = moved([torch.einsum("ochw,cd->odhw", gradient, turn) for gradient in given], start)
    assert torch.allclose(found, torch.einsum("ochw,cd->odhw", moved(given, start), turn), atol=1e-6)


def test_other_parameters_get_adam_s_steps() -> None:
    start = torch.linspace(-1, 1, 48).view(3, 16)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Soap([ours], lr=RATE, betas=(BETA1, BETA2)),
        torch.optim.Adam([theirs], lr=RATE, betas=(BETA1, BETA2)),
    ]
    for gradient in gradients(12):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.float().view(3, 16)
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_bases_follow_the_gradients_and_are_those_of_the_first_rank() -> None:
    """At the end, the covariances of gradients of another distribution are nearly diagonal in the bases."""
    parameter = nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))
    shared: list[list[Tensor]] = []
    optimizer = Soap([parameter], lr=RATE, share=shared.append)
    early, late = gradients(300), gradients(200)[::-1]
    scales = torch.tensor([1.0, 4.0, 16.0, 64.0], dtype=torch.float64)
    late = [gradient * scales[:, None, None] for gradient in late]
    for gradient in early[:5] + late:
        parameter.grad = gradient
        optimizer.step()
    state = optimizer.state[parameter]
    assert len(shared) == 1 + 204 // 10
    assert all(one is state[f"basis_{axis}"] for axis, one in enumerate(shared[-1]))
    for axis, side in enumerate((3, 4, 4)):
        basis, covariance = state[f"basis_{axis}"], state[f"covariance_{axis}"]
        assert torch.allclose(basis.T @ basis, torch.eye(side, dtype=torch.float64), atol=1e-9)
        turned = basis.T @ covariance @ basis
        assert (turned - turned.diagonal().diag()).norm() < 0.2 * turned.norm()


@pytest.mark.parametrize("precondition", ["true", "false"])
def test_a_run_with_it_resumes_bit_for_bit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precondition: str
) -> None:
    """Killed between two updates of the bases. 15 steps."""
    run = functools.partial(run, "--optimizer", "soap", "--precondition", precondition)
    flags = ("--epochs", "5", "--save_every_steps", "1", "--sched", "onecycle")
    assert run(*flags, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_state_of_another_optimizer_or_shape_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--optimizer", "soap", "--epochs", "1") == 0
    path = tmp_path / "checkpoints" / "last.pt"
    whole = torch.load(path, weights_only=True)
    state = whole["training"]["optimizer"]["state"]
    number = next(each for each in state if "basis_1" in state[each])
    for name, value in (("basis_1", torch.eye(2)), ("covariance_0", None), ("other", 1)):
        before = dict(state[number])
        state[number][name] = value
        torch.save(whole, path)
        state[number] = before
        capsys.readouterr()
        assert run("--optimizer", "soap", "--epochs", "1", "--resume", str(path)) == 2
        assert "not a whole checkpoint (optimizer: " in capsys.readouterr().err
    torch.save(whole, path)
    assert run("--optimizer", "adam", "--epochs", "1", "--resume", str(path)) == 2
    assert "--optimizer adam: the run to resume has soap" in capsys.readouterr().err
    assert load_checkpoint(path).config["optimizer"] == "soap"


def test_weight_decay_is_refused() -> None:
    with pytest.raises(InputError, match=r"--weight_decay 0\.1: goes with --optimizer adam or adamw"):
        TrainConfig(shards="shards", optimizer="soap", weight_decay=0.1)


def test_its_defaults_are_those_that_were_measured() -> None:
    """Without preconditioning, unless it is asked for."""
    soap = TrainConfig(shards="shards", optimizer="soap")
    assert (soap.initialisation, soap.preconditioned, soap.peak_lr) == ("calibrated", False, 1e-3)
    assert TrainConfig(shards="shards", optimizer="soap", precondition=True).preconditioned
    assert TrainConfig(shards="shards").preconditioned
