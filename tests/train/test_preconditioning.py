"""The coordinates of `--precondition`: their values, that gradients and steps fit together, and whole runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relic.codec.checkpoint import load_checkpoint
from relic.codec.model import Architecture, ConvLayer, build_model
from relic.codec.scope import set_trainable_parts
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, tiny, weights
from tests.train.test_processes import ROOT, ROUNDING, finish, losses_and_gradients
from tests.train.test_processes import start as begin
from train.preconditioning import Preconditioning, measure_coordinates

PRECONDITIONED = ("--swap_init", "calibrated", "--calib_images", "8", "--precondition", "--log_every", "1")


def lifted_and_mixed(channels: int, crops: int = 8, side: int = 48) -> Tensor:
    """Activations far from zero, with correlated channels and neighbours."""
    torch.manual_seed(3)
    blur = torch.tensor([0.3, 1.0, 0.3])
    blurred = F.conv2d(torch.randn(crops * channels, 1, side + 2, side + 2), torch.outer(blur, blur)[None, None])
    mixing = torch.randn(channels, channels) + torch.eye(channels)
    mixed = torch.einsum("oc,bchw->bohw", mixing, blurred.view(crops, channels, side, side))
    return mixed + torch.linspace(3, 30, channels)[:, None, None]


def convolution(*, transposed: bool, inputs: int = 4, outputs: int = 3) -> ConvLayer:
    torch.manual_seed(4)
    if transposed:
        return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


def test_inputs_are_of_one_size_and_hang_together_no_more() -> None:
    """The oracle: the covariance of whole windows from `unfold`, in the measured coordinates."""
    layer, a = convolution(transposed=False), lifted_and_mixed(4)
    a = a - a.mean((0, 2, 3))[:, None, None]  # otherwise the zeros of the padding would dominate the covariance
    found = measure_coordinates(layer, a, layer(a).detach())
    assert torch.allclose(found.mean, a.mean((0, 2, 3)), atol=1e-4)
    windows = F.unfold(a, 5, stride=2, padding=2).transpose(1, 2).flatten(0, 1).double()
    plain = windows.T @ windows / len(windows)
    carried = torch.kron(found.channels, found.taps).double()
    whitened = carried.T @ plain @ carried
    of_identity = torch.eye(len(plain), dtype=torch.float64)
    assert float(torch.linalg.cond(plain)) > 1e3
    assert float(torch.linalg.cond(whitened)) < 5
    assert float((whitened - of_identity).abs().max()) < 0.1
    deviation = layer(a).std((0, 2, 3))
    assert torch.allclose(found.scale, 3 * deviation / 10, rtol=1e-3)  # of 4 x 25 inputs


def test_taps_of_a_transposed_convolution_meet_within_their_phase_alone() -> None:
    layer = convolution(transposed=True)
    a = lifted_and_mixed(4)
    taps = measure_coordinates(layer, a, layer(a).detach()).taps.reshape(5, 5, 5, 5)
    for row, column, row_2, column_2 in torch.cartesian_prod(*[torch.arange(5)] * 4).tolist():
        meet = (row - row_2) % 2 == 0 and (column - column_2) % 2 == 0
        assert meet == bool(taps[row, column, row_2, column_2] != 0)


@pytest.fixture
def preconditioned() -> tuple[nn.Module, Preconditioning, Tensor]:
    """A small codec with ReLU, its measured coordinates, and images."""
    torch.manual_seed(0)
    model = build_model(Architecture((4, 6), "all"))
    set_trainable_parts(model, "all", "replaced+hyper")
    preconditioning = Preconditioning(model)
    preconditioning.measure(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8))
    return model, preconditioning, torch.rand(2, 3, 64, 64)


def test_gradients_are_those_of_the_proxies(preconditioned: tuple[nn.Module, Preconditioning, Tensor]) -> None:
    """The oracle: autograd through a codec written as a function of the proxies."""
    model, preconditioning, x = preconditioned
    plain = {name: each.detach().clone() for name, each in model.named_parameters()}

    def loss_of(values: dict[str, Tensor]) -> Tensor:
        parameters = dict(plain)
        for name, coordinates in preconditioning._coordinates.items():
            transposed, phases = name.startswith("g_s"), 4 if name.startswith("g_s") else 1
            equation = "o,cd,odt,tu->ocu" if not transposed else "o,cd,dot,tu->cou"
            proxy = values[name].flatten(2)
            change = torch.einsum(equation, coordinates.scale, coordinates.channels, proxy, coordinates.taps)
            shift = torch.einsum("cot,c->o" if transposed else "oct,c->o", change, coordinates.mean) / phases
            parameters[f"{name}.weight"] = plain[f"{name}.weight"] + change.reshape(plain[f"{name}.weight"].shape)
            parameters[f"{name}.bias"] = plain[f"{name}.bias"] - shift
        output = torch.func.functional_call(model, parameters, (x,))
        result: Tensor = (output["x_hat"] - x).square().mean()
        return result

    names = list(preconditioning._coordinates)
    zeros = {name: torch.zeros_like(plain[f"{name}.weight"], requires_grad=True) for name in names}
    torch.manual_seed(1)
    wanted = dict(zip(names, torch.autograd.grad(loss_of(zeros), list(zeros.values())), strict=True))
    torch.manual_seed(1)
    (model(x)["x_hat"] - x).square().mean().backward()
    preconditioning.take_gradients()
    proxies = dict(zip(names, [p for p in preconditioning.parameters if p.dim() == 4], strict=True))
    assert len(names) == 8 and all(each.grad is None for each in model.parameters() if each.dim() == 4)
    for name, proxy in proxies.items():
        assert proxy.grad is not None
        assert torch.allclose(proxy.grad, wanted[name], rtol=1e-3, atol=1e-6 * float(wanted[name].abs().max())), name

    # A step changes the codec in the same way as that function.
    torch.manual_seed(2)
    steps = {name: 0.01 * torch.randn_like(zero) for name, zero in zeros.items()}
    torch.manual_seed(1)
    stepped = loss_of(steps)
    with torch.no_grad():
        for name, proxy in proxies.items():
            proxy.copy_(steps[name])
    preconditioning.move_kernels()
    assert all(not proxy.any() for proxy in proxies.values())
    torch.manual_seed(1)
    moved = (model(x)["x_hat"] - x).square().mean()
    assert float(moved) == pytest.approx(float(stepped), rel=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_kernel_that_moves_leaves_the_mean_of_its_outputs(transposed: bool) -> None:
    layer, a = convolution(transposed=transposed), lifted_and_mixed(4)
    holder = nn.Sequential(layer)
    preconditioning = Preconditioning(holder)  # here it needs only the parameters of a codec
    preconditioning._coordinates["0"] = measure_coordinates(layer, a, layer(a).detach())
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    before, kernel = layer(a)[inside].detach(), layer.weight.detach().clone()
    with torch.no_grad():
        preconditioning.parameters[0].fill_(0.02)
    preconditioning.move_kernels()
    after = layer(a)[inside].detach()
    by_kernel_alone = F.conv_transpose2d if transposed else F.conv2d
    change = layer.weight.detach() - kernel
    options = {"stride": 2, "padding": 2} | ({"output_padding": 1} if transposed else {})
    shift = by_kernel_alone(a, change, None, **options)[inside].mean((0, 2, 3)).abs()
    assert bool((shift > 0.5).all())
    assert bool(((after - before).mean((0, 2, 3)).abs() < 0.1 * shift).all())


def test_a_preconditioned_run_resumes_bit_for_bit(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*PRECONDITIONED, "--save_every_steps", "1", "--sched", "onecycle")
    assert run(*flags, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*flags, folder=tmp_path / "cut")
    # The coordinates are those of the start of the run: they are kept, not measured again.
    monkeypatch.setattr(Preconditioning, "measure", None)
    assert run(*flags, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut = (lines(tmp_path / name, "train") for name in ("whole", "cut"))
    assert [(line["loss"], line["grad_norm"]) for line in whole] == [(line["loss"], line["grad_norm"]) for line in cut]
    architecture = load_checkpoint(tmp_path / "whole" / "checkpoints" / "last.pt").architecture
    assert set(weights(tmp_path / "whole")) == set(build_model(architecture).state_dict())


@pytest.mark.parametrize("init", ["calibrated", "naive"])
def test_a_resumed_run_takes_over_what_its_flags_leave_open(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    """The defaults follow from how the run began. A resume need not say this."""
    began = ("--calib_images", "8", "--save_every_steps", "1", "--epochs", "2")
    at_start = ("--lr", "3e-3", "--lr_warmup_steps", "5", "--swap_init", init)
    assert run(*began, *at_start, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(*began, *at_start, folder=tmp_path / "cut")
    assert run(*began, "--resume", "auto", "--lr", "3e-3", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    config = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt").config
    assert (config["precondition"], config["lr_warmup_steps"]) == (init == "calibrated", 5)


def test_only_what_is_trained_moves(run: Run, tmp_path: Path) -> None:
    flags = ("--calib_images", "8", "--precondition", "--replace_parts", "encoder", "--train_scope", "replaced")
    assert run(*flags, "--epochs", "0", folder=tmp_path / "before") == 0
    assert run(*flags, "--epochs", "1", folder=tmp_path / "after") == 0
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"g_a.{place}.{kind}" for place in (0, 2, 4, 6) for kind in ("weight", "bias")}


def test_a_step_that_the_scaler_skips_moves_nothing(
    preconditioned: tuple[nn.Module, Preconditioning, Tensor],
) -> None:
    model, preconditioning, x = preconditioned
    optimizer = torch.optim.Adam(preconditioning.parameters, lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)  # gradients overflow
    before = {name: each.clone() for name, each in model.state_dict().items()}
    scaler.scale((model(x)["x_hat"] * 1e3).square().sum()).backward()
    preconditioning.take_gradients()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    preconditioning.move_kernels()
    scaler.update()
    assert scaler.get_scale() < 1e38
    assert_equal(before, model.state_dict())


@pytest.mark.parametrize("flags", [("--amp", "true", "--amp_dtype", "bf16"), ("--loss_type", "recon")])
def test_it_goes_with_mixed_precision_and_recon(run: Run, tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert run(*PRECONDITIONED, *flags, "--epochs", "1") == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_flags_that_contradict_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        run(*PRECONDITIONED, "--weight_decay", "0.1")
    assert refused.value.code == 2
    assert "--weight_decay 0.1: has no meaning with --precondition" in capsys.readouterr().err
    assert run(*PRECONDITIONED, "--epochs", "1") == 0
    capsys.readouterr()
    assert run(*PRECONDITIONED, "--precondition", "false", "--epochs", "1", "--resume", "auto") == 2
    assert "--precondition False: the run to resume has True" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_two_processes_precondition_like_one(crops: Path, tmp_path: Path, optimizer: str) -> None:
    script = tmp_path / "rounding.py"
    script.write_text(ROUNDING.format(root=str(ROOT)))
    flags = (*PRECONDITIONED, "--epochs", "1", "--lr", "1e-4", "--optimizer", optimizer)
    for count in (1, 2):
        folder = tmp_path / str(count)
        finish(begin(str(script), tiny(crops, folder, *flags), count))
    assert losses_and_gradients(tmp_path / "2") == pytest.approx(losses_and_gradients(tmp_path / "1"), rel=1e-3)


def test_the_gradient_and_the_step_are_the_formula_s(
    preconditioned: tuple[nn.Module, Preconditioning, Tensor],
) -> None:
    """The oracle: the same formulas in float64, with products and sums in their plain order."""
    model, preconditioning, x = preconditioned
    (model(x)["x_hat"] - x).square().mean().backward()
    layers = dict(model.named_modules())
    names = list(preconditioning._coordinates)
    proxies = [p for p in preconditioning.parameters if p.dim() == 4]
    before = {name: each.detach().double().clone() for name, each in model.named_parameters()}
    gradients = {name: each.grad.double() for name, each in model.named_parameters() if each.grad is not None}
    preconditioning.take_gradients()
    wanted_biases = {}
    for name, proxy in zip(names, proxies, strict=True):
        transposed, phases = name.startswith("g_s"), 4 if name.startswith("g_s") else 1
        mean, channels, taps, scale = (each.double() for each in preconditioning._coordinates[name])
        share = (mean / phases)[:, None]
        kernel = gradients[f"{name}.weight"]
        kernel = (kernel.transpose(0, 1) if transposed else kernel).flatten(2)
        kernel = kernel - share * gradients[f"{name}.bias"][:, None, None]
        wanted = scale[:, None, None] * (channels @ kernel @ taps)
        assert proxy.grad is not None
        found = (proxy.grad.transpose(0, 1) if transposed else proxy.grad).flatten(2)
        assert float((found - wanted).norm()) <= 5e-6 * float(wanted.norm()), name
        change = scale[:, None, None] * (channels @ wanted @ taps)
        wanted_biases[name] = before[f"{name}.bias"] - (change * share).sum((1, 2))
        with torch.no_grad():
            proxy.copy_(proxy.grad)
    preconditioning.move_kernels()
    for name, wanted in wanted_biases.items():
        moved = layers[name].bias.detach() - before[f"{name}.bias"]
        assert torch.allclose(moved, wanted - before[f"{name}.bias"], rtol=1e-4, atol=1e-7), name
